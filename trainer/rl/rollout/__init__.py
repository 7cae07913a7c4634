"""Rollout engines: what they answer, and the protocol that all of them speak."""
