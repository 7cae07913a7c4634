"""The error of checkpoints. No torch here: commands report it before they import that."""

from parallel.errors import UserError


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be used for this run; the message says why and what would work."""
