"""`octavo tokenize`: turn documents into shards of tokens."""
