"""Chats: records, the checkpoint's own chat template, and the tokens of them that are trained."""
