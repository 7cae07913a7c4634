"""Documents of parts: interleaved text, images and signals."""
