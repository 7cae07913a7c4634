"""Item recordings of published data sets, as documents with a signal and a question about it."""
