"""Environments and rewards in processes of their own: on this machine, or as actors of a Ray cluster."""
