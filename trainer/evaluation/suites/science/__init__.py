"""Benchmarks of chemistry, materials, biology, signals and several sciences together."""
