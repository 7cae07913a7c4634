"""An append-only JSONL file of entries that survives its writer."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.storage.atomic import sync
from trainer.storage.lock import FileLock

Entry = dict[str, Any]
SHOWN = 100  # characters of a line in an error


class LedgerLineError(Exception):
    """A whole line that is not an entry. line: its number, from 1. text: how it starts."""

    def __init__(self, path: Path, line: int, text: str, reason: str) -> None:
        super().__init__(path, line, text, reason)
        self.path, self.line, self.text, self.reason = path, line, text, reason

    def __str__(self) -> str:
        return f"{self.path}, line {self.line} is not an entry of a ledger: {self.reason}"


class Ledger:
    """Entries by key. An entry is on the disk before `add` returns and is found by the next process, however this one
    ends: a half-written last line is cut off. Safe to use from several threads; refuses a second process.

    Only the positions of entries are in memory. Where a key was added twice the last entry counts.
    Raises LockedError where another process has the ledger, LedgerLineError, NoLocksError, OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._places = path, dict[str, tuple[int, int]]()
        self._lock = threading.Lock()
        self._torn = False  # bytes that are not of an entry may follow the last
        self._held = FileLock(path)
        self._file = self._held.file
        self._end = self._read()
        os.ftruncate(self._file, self._end)

    def _read(self) -> int:
        """The end of the last whole line, in bytes."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    key = json.loads(line)["key"]
                except (ValueError, KeyError, TypeError) as error:
                    self._held.close()
                    text = line[:SHOWN].decode("utf-8", "replace")
                    raise LedgerLineError(self.path, number, text, repr(error)) from error
                self._places[key] = (end, len(line))
                end += len(line)
        return end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Entry | None:
        with self._lock:
            place = self._places.get(key)
        if place is None:
            return None
        found: Entry = json.loads(os.pread(self._file, place[1], place[0]))
        return found

    def add(self, key: str, entry: Entry) -> None:
        """Raises OSError, for a full disk or a failed sync too; the ledger is then as it was."""
        line = json.dumps({"key": key, **entry}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if self._torn:
                os.ftruncate(self._file, self._end)
            self._torn = True
            try:
                if os.pwrite(self._file, line, self._end) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                sync(self._file)
            except BaseException:
                with contextlib.suppress(OSError):  # the next entry tries again, and is refused where that fails
                    os.ftruncate(self._file, self._end)
                raise
            self._torn = False
            self._places[key] = (self._end, len(line))
            self._end += len(line)
