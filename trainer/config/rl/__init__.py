"""The section `rl` of a configuration."""
