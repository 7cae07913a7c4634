"""Chats that the toy is fine-tuned on."""
