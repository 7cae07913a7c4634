"""Ranks watch each other: heartbeats, and which rank is at fault."""
