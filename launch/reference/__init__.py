"""Commands that print what there is: recipes, keys, and the words that a shell completes."""
