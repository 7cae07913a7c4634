"""Rewards: the value of an answer to a question, and the reason for it."""
