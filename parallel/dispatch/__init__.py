"""Dispatchers bring tokens to experts and the results back; `base` has the contract."""
