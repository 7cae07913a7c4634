"""Files that survive: manifests, atomic writes, locks, workers."""
