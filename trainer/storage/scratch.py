"""Directories of files that are unused once the process that wrote them has ended."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from trainer.storage.atomic import sync
from trainer.storage.lock import FileLock, LockedError

PREFIX, LOCK, NEW = "octavo-scratch-", "lock", ".new"


class ScratchDirectory:
    """A new directory `path` in `parent`. It is removed by `close`, at the latest when the process ends; if that is
    killed, by the next `remove_abandoned`. Raises OSError."""

    def __init__(self, parent: Path) -> None:
        new = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=NEW, dir=parent))
        lock = FileLock(new / LOCK)
        self.path = new.rename(new.with_suffix(""))  # from now on `remove_abandoned` sees it, locked
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def sync(self, path: Path) -> None:
        """Write a file of the directory to the disk. Raises OSError."""
        sync(path)

    def close(self) -> None:
        """May be called again."""
        self._remove()


def remove_abandoned(parent: Path) -> None:
    """Remove the scratch directories in `parent` whose processes were killed."""
    for path in parent.glob(f"{PREFIX}*"):
        if path.suffix == NEW:
            continue  # its lock may not be held yet
        try:
            with FileLock(path / LOCK, create=False):
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # a process that was removing it, lock first, may have been killed
            shutil.rmtree(path, ignore_errors=True)
        except (LockedError, OSError):
            continue  # a live process or another user has it, or it is being removed


def _remove(path: Path, lock: FileLock) -> None:
    shutil.rmtree(path, ignore_errors=True)
    lock.close()
