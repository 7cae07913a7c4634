"""Benchmarks with images: questions, grounding and drawing."""
