"""Runs that learn from rollouts."""
