"""Parameters spread over ranks."""
