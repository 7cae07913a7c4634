"""Chats as a run reads them: tokenized once into the cache, packed into windows, with a mask of what is trained."""
