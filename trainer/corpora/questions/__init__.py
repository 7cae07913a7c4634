"""Questions that are made before a run."""
