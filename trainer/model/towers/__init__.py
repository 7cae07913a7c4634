"""The towers that turn images and signals into embeddings of the text model, as plain single-device modules."""
