"""Keys of kinds of data that are not a mixture."""
