"""Toy documents with images and signals, made from installed packages: drawings, plots, recordings, and questions."""
