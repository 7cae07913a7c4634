"""Data errors the user can fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from parallel.errors import UserError


class DataError(UserError):
    """A corpus cannot be built or read: a file, a package or a key of the configuration has to change."""


@contextmanager
def named_by(key: str) -> Iterator[None]:
    """While entered, a `DataError` has `key`, which names the file or directory, before each of its lines."""
    try:
        yield
    except DataError as error:
        raise DataError([replace(fault, text=f"{key}: {fault.text}") for fault in error.faults]) from error
