"""Pipelines of stages over ranks, driven by torch's schedules."""
