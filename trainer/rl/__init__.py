"""Reinforcement learning: rollouts, rewards, batches of them, and what a policy is trained with."""
