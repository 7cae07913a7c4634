"""Objectives: the functions that a run minimises."""
