"""Scorers: the figures of published benchmarks, from answers and references.

Each scorer is a `Metric`. It follows the published scorer to the last digit, its quirks included; where that differs
from the metric that the name promises, the docstring says so and the textbook value is in `Figures.extra`.
"""
