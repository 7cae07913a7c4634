"""The one exception of this package that is the user's to mend."""


class DataError(Exception):
    """A corpus cannot be built or read; the message names the file, package or key and what would work."""
