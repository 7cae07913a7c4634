"""Questions whose answers can be verified: records in JSONL, tokenized prompts, and the order of a run."""
