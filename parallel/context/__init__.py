"""Attention over a sequence that several ranks share; `base` has the contract."""
