"""Token shards in Megatron's format: files, reader, prefixes, tokenizer."""
