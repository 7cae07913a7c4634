"""The keys of a config.json, and their meaning for the function of the weights."""
