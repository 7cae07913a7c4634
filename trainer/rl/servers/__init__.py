"""Rollout engines that are servers of other programs, spoken to over HTTP, and workers that Ray places."""
