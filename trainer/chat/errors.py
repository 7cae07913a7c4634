"""Errors about chats that the user can fix."""

from parallel.errors import UserError


class ChatError(UserError):
    """A chat template, a file of chats or one chat has to change."""
