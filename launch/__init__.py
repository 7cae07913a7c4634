"""The `octavo` console script: everything that happens before and around a training process."""
