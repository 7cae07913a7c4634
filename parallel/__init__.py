"""Spread tensors and work over processes. Imports nothing from `trainer`."""
