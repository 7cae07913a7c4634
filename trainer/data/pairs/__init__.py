"""Pairs of an image and a caption, read by number from the tar files that img2dataset leaves."""
