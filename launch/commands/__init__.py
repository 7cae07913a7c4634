"""The commands of `octavo`, a module each."""
