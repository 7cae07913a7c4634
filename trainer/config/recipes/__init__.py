"""Recipes and command lines as they are written: their groups, their files, and the words that override them."""
