"""An exclusive lock on a file: one process at a time writes what it guards."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

POLL = 0.05  # seconds between two attempts
LONGEST_OWNER = 1000  # bytes


class LockedError(Exception):
    """Another process holds the lock `path`. `owner`: the text that it left in the file, "" if none."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(path, owner)
        self.path, self.owner = path, owner

    def __str__(self) -> str:
        return f"{self.path} is locked by {self.owner or 'another process'}"


class NoLocksError(OSError):
    """The file system has no locks."""


class FileLock:
    """Exclusive `flock` on `path`, acquired by the constructor.

    Held until `close` or, without it, until every process that has it has ended, however it ended: forked processes
    share it, and so do started ones that are given `file`.

    wait: seconds to keep trying; None: without limit. on_wait: called once before the first wait. create: make the file
    where it is missing, with its directories. owner: text for the file, which a process that finds it locked reads; the
    file's content is left alone without it.
    Raises LockedError after `wait`, NoLocksError, FileNotFoundError without `create`, OSError.
    """

    def __init__(
        self,
        path: Path,
        *,
        wait: float | None = 0.0,
        on_wait: Callable[[], None] = lambda: None,
        create: bool = True,
        owner: str = "",
    ) -> None:
        self.path = path
        until = None if wait is None else time.monotonic() + wait
        waited = False
        while (file := _try(path, create)) is None:
            if until is not None and time.monotonic() >= until:
                raise LockedError(path, _read_owner(path) if owner else "")
            if not waited:
                on_wait()
                waited = True
            time.sleep(POLL)
        self.file = file  # a descriptor open for reading and writing
        if owner:
            os.ftruncate(file, 0)
            os.pwrite(file, owner.encode(), 0)

    def close(self) -> None:
        """Give the lock back. May be called again."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def holder(path: Path) -> str | None:
    """The owner that the process which holds the lock `path` left there, "" if none; None where no process holds it.

    Shares the lock for a moment, so a process that wants it must be ready to wait that long. Raises `OSError`.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return _read_owner(path)
        if error.errno in (errno.ENOLCK, errno.ENOTSUP):
            return None
        raise
    finally:
        os.close(file)
    return None


def _try(path: Path, create: bool) -> int | None:
    """A descriptor that holds the lock; None where another process holds it."""
    while True:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        except FileNotFoundError:
            if not create:
                raise
            continue  # its directory was removed meanwhile
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return file
        except FileNotFoundError:
            pass  # the last holder removed or renamed the file: that one guards nothing any more
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                raise NoLocksError(error.errno, error.strerror, str(path)) from None
            raise
        os.close(file)


def _read_owner(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(LONGEST_OWNER).decode(errors="replace").strip()
    except OSError:
        return ""
