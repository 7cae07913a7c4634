"""The model, its training, and everything that a run reads and writes."""
