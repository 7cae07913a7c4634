"""Indexes of image-text pairs in tar files, and the toy's pairs."""
