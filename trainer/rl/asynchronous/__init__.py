"""Rollouts that are under way while training continues."""
