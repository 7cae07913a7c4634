"""The memory of one rank: counted as it is used, and ways to use less."""
