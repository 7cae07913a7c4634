"""Tasks of SciReasoner, as OpenCompass 0.5.4 scores them (datasets/SciReasoner/)."""
