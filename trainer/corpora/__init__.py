"""What makes corpora before a run."""
