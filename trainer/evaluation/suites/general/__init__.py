"""Benchmarks of general knowledge, mathematics, instructions, code and agents."""
