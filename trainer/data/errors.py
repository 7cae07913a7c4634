"""Data errors the user can fix."""

from parallel.errors import UserError


class DataError(UserError):
    """A corpus cannot be built or read: a file, a package or a key of the configuration has to change."""
