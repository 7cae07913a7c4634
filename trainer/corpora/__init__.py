"""Making corpora, before any run: tokenizing documents, science records as text, and the toy corpora."""
