"""Rules and a classifier that drop captions of poor quality (docs/captions_describe.md)."""
