"""What a well-typed configuration can still get wrong. No torch here."""
