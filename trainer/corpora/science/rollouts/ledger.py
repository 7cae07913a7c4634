"""The answers of a server: an append-only JSONL file that survives its writer."""

import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from trainer.data.errors import DataError
from trainer.storage.atomic import sync
from trainer.storage.lock import FileLock, LockedError

Entry = dict[str, Any]


class Ledger:
    """Entries by key. An entry is on the disk before `add` returns and is found by the next process, however this one
    ends: a half-written last line is cut off. Safe to use from several threads; refuses a second process.

    Only the positions of entries are in memory. Raises DataError for a line that is not an entry.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._places = path, dict[str, tuple[int, int]]()
        self._lock = threading.Lock()
        try:
            self._held = FileLock(path)
        except LockedError:
            raise DataError(
                f"{path} is in use by another process", where=str(path), allowed="wait for it, or use another --ledger"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", where=str(path), allowed="use another --ledger") from error
        self._file = self._held.file
        self._end = self._read()
        os.ftruncate(self._file, self._end)

    def _read(self) -> int:
        """The end of the last whole line, in bytes."""
        end = 0
        with self._path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    key = json.loads(line)["key"]
                except (ValueError, KeyError, TypeError) as error:
                    where = f"{self._path}, line {line_number}"
                    raise DataError(
                        f"{where} is not an entry of a ledger: {error!r}",
                        where=where,
                        value=line[:100].decode("utf-8", "replace"),
                        allowed="remove the line, or use another --ledger",
                    ) from error
                self._places[key] = (end, len(line))
                end += len(line)
        return end

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Entry | None:
        with self._lock:
            place = self._places.get(key)
        if place is None:
            return None
        found: Entry = json.loads(os.pread(self._file, place[1], place[0]))
        return found

    def add(self, key: str, entry: Entry) -> None:
        line = json.dumps({"key": key, **entry}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if os.pwrite(self._file, line, self._end) != len(line):
                raise DataError(
                    f"{self._path}: no space left on the device", where=str(self._path), allowed="free some space"
                )
            sync(self._file)
            self._places[key] = (self._end, len(line))
            self._end += len(line)
