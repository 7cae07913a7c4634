"""A checkpoint with more experts, made of one with fewer: copies of every expert in the groups of a grouped router."""
