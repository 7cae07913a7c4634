"""Packing of samples of unequal length."""
