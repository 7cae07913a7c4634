"""Readers of recordings, one module a family of formats, each through the libraries of its field."""
