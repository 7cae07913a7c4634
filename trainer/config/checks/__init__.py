"""Mistakes that a well-typed configuration can still contain, one file per section; `validate` runs every check."""
