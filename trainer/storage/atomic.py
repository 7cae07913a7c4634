"""Files and directories that are complete or absent, whatever interrupts their writer.

Written under another name beside their place, synced, then renamed. A lock shows whether the writer is alive, so what a
killed one left is written over or removed by the next.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from trainer.storage.lock import FileLock, LockedError, NoLocksError

FILE_SUFFIX = ".tmp"
DIRECTORY_SUFFIX = ".octavo.tmp"
OWNER = "owner.lock"  # in a directory that is being written


class TargetExistsError(FileExistsError):
    """Something has the final name already, if only a dangling link."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self.path = path


@contextmanager
def atomic_file(path: Path, *, durable: bool = True, overwrite: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file, `NAME.tmp`; what is written there replaces `path` when the block ends.

    An exception removes the temporary file and leaves `path` as it was.

    durable: on disk when the block has ended. False where the reader verifies the content. overwrite: False raises
    TargetExistsError where `path` exists at the end; the temporary file then stays.
    Raises LockedError where another process is writing the file; OSError.
    """
    temporary = path.with_name(path.name + FILE_SUFFIX)
    with _locked(temporary):
        os.truncate(temporary, 0)
        try:
            yield temporary
            if durable:
                sync(temporary)
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:  # of a write: a full disk
                error.filename = str(temporary)
            temporary.unlink(missing_ok=True)
            raise
        if not overwrite:
            _must_not_exist(path)
        os.replace(temporary, path)
    if durable:
        sync(path.parent)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target`, which is renamed to `target` when the block ends; exceptions remove it.

    Files in it should be synced by their writers. `OWNER` in it is locked and not a part of the result.
    Raises TargetExistsError where `target` exists at the end; OSError.
    """
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}{DIRECTORY_SUFFIX}")
    temporary.mkdir(parents=True)
    try:
        with _locked(temporary / f"{OWNER}.new"):
            os.rename(temporary / f"{OWNER}.new", temporary / OWNER)  # never seen unlocked under its name
            yield temporary
            (temporary / OWNER).unlink()
            publish(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_unfinished(target: Path) -> Path | None:
    """Remove what killed writers of `atomic_directory(target)` left. Returns the directory of a writer that is alive.

    A directory whose lock cannot be taken, or whose file system has no locks, is left alone. Raises OSError.
    """
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}" + re.escape(DIRECTORY_SUFFIX))
    found = target.parent.iterdir() if target.parent.is_dir() else ()
    for path in [path for path in found if pattern.fullmatch(path.name)]:
        try:
            with FileLock(path / OWNER, create=False):
                shutil.rmtree(path)
        except LockedError:
            return path
        except OSError:  # no lock in it, or another user's: its writer may be alive
            continue
    return None


def publish(path: Path, target: Path) -> None:
    """Rename a finished file or directory to `target`, which must not exist. On disk when this returns.

    Raises TargetExistsError; OSError.
    """
    sync(path)
    _must_not_exist(target)  # a rename would replace an empty directory
    try:
        os.rename(path, target)
    except OSError:
        _must_not_exist(target)  # another process was faster
        raise
    sync(target.parent)


def sync(path: Path | int) -> None:
    """Write to the disk the content of a file (or of an open one), or the names in a directory. Raises OSError."""
    if isinstance(path, int):
        os.fsync(path)
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _locked(path: Path) -> AbstractContextManager[object]:
    try:
        return FileLock(path)
    except NoLocksError:
        path.touch()
        return nullcontext()


def _must_not_exist(path: Path) -> None:
    if os.path.lexists(path):
        raise TargetExistsError(path)
