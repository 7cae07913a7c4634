"""The data of a run: a stream of samples by number, held-out samples, and the tokenizer of both."""
