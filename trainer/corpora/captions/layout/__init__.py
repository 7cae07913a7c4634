"""Finds figures, their captions and the text around them in PDFs, without models."""
