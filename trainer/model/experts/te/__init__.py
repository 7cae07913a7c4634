"""Experts through Transformer Engine."""
