"""The decoder cut into pipeline stages."""
