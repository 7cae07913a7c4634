"""Captions of crops, asked from vision models on servers (docs/captions_describe.md)."""
