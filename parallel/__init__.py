"""How tensors and work are spread over processes. Imports nothing from `trainer`."""
