"""Experts on Transformer Engine's grouped GEMMs, under one of its FP8 recipes."""
