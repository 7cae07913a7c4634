"""Figures, tables and formulas of PDFs, with the captions that a corpus is made from (docs/captions.md)."""
