"""Copies among crops: one is kept, with the places of all."""
