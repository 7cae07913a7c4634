"""The images and signals of a shard, beside its tokens: their bytes, and where their placeholders are.

    train-00000.media    the bytes of every image and signal, end to end; equal ones once
             .places     a record of PLACE for each placeholder run, in the order of the tokens

A record is found by bisection in a memory map and the bytes by one read at their place: nothing is held in memory, and
the first sample of a corpus costs what the last one does. Arrow's files need a table of record batches and its library
in every process that reads; these need neither.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.shards.files import REMEDY

DIGEST = 16  # bytes of the SHA-256 of a medium
IMAGE, SIGNAL = 0, 1  # kinds
KINDS = ("image", "signal")
PLACE = np.dtype(
    [
        ("first", "<i8"),  # token of the shard at which the placeholders start
        ("tokens", "<i4"),  # placeholders
        ("kind", "<i4"),
        ("offset", "<i8"),  # in .media
        ("nbytes", "<i8"),
        ("digest", f"V{DIGEST}"),
    ]
)
MEDIA, PLACES = ".media", ".places"
OPEN_FILES = 64  # of .media at one time: a corpus may have more shards than a process may have files

Places = npt.NDArray[np.void]


@dataclass(frozen=True)
class Stored:
    """An image or a signal in a document. first: its first placeholder, counted from the document's first token."""

    kind: int
    first: int
    tokens: int
    data: bytes = field(repr=False)
    left_out: int = 0  # steps of a signal that the rule does not read
    without_rate: bool = False  # a signal whose sampling rate is unknown

    @property
    def digest(self) -> bytes:
        return digest_of(self.data)


def digest_of(data: bytes) -> bytes:
    """The first DIGEST bytes of a medium's SHA-256."""
    return hashlib.sha256(data).digest()[:DIGEST]


class MediaWriter:
    """Appends bytes to a `.media` file, equal ones once, and hashes it all."""

    def __init__(self, path: Path) -> None:
        self.path, self._file, self._hash = path, path.open("wb"), hashlib.sha256()
        self._at: dict[bytes, int] = {}
        self.nbytes = 0

    def add(self, data: bytes, digest: bytes) -> int:
        """The offset of the bytes in the file."""
        if digest not in self._at:
            self._at[digest] = self.nbytes
            self._file.write(data)
            self._hash.update(data)
            self.nbytes += len(data)
        return self._at[digest]

    @property
    def distinct(self) -> int:
        return len(self._at)

    def close(self) -> str:
        """Close the file; return its SHA-256."""
        self._file.close()
        return self._hash.hexdigest()


class MediaFiles:
    """The bytes of media in any number of files; at most OPEN_FILES are open at a time."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()

    def read(self, path: Path, place: np.void) -> bytes:
        """The bytes of a record of `path`'s shard. Raises DataError where they are missing or corrupt."""
        offset, nbytes = int(place["offset"]), int(place["nbytes"])
        try:
            data = os.pread(self._file(path), nbytes, offset)
        except OSError as error:
            raise unreadable(path, f"{path} cannot be read: {error.strerror or error}") from error
        if len(data) != nbytes:
            text = f"{path} is truncated: {nbytes} bytes from byte {offset} end after {len(data)}"
            raise unreadable(path, text, len(data))
        if digest_of(data) != place["digest"].tobytes():
            raise unreadable(path, f"{path} is corrupt in the {nbytes} bytes from byte {offset}", offset)
        return data

    def _file(self, path: Path) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) == OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[path] = path.open("rb", buffering=0)
        return self._open[path].fileno()


class PlaceTable:
    """The records of a shard, in a memory map."""

    def __init__(self, path: Path, count: int) -> None:
        """Raises DataError for a file that does not have `count` records."""
        try:
            size = os.path.getsize(path)
            if size != count * PLACE.itemsize:
                text = f"{path} has {size} bytes, but the {count} records of its manifest take {count * PLACE.itemsize}"
                raise unreadable(path, f"{text}: it is truncated or corrupt", size)
            self._all: Places = np.asarray(np.memmap(path, PLACE, mode="r")) if size else np.empty(0, PLACE)
        except OSError as error:
            raise unreadable(path, f"{path} cannot be read: {error.strerror or error}") from error

    def __len__(self) -> int:
        return len(self._all)

    def between(self, first: int, last: int) -> Places:
        """A copy of the records with first <= their first token < last."""
        numbers = range(len(self))
        low = bisect_left(numbers, first, key=self._first)
        high = bisect_left(numbers, last, lo=low, key=self._first)
        return self._all[low:high].copy()

    def _first(self, number: int) -> int:
        return int(self._all["first"][number])


def places(rows: Sequence[tuple[Any, ...]]) -> Places:
    """Records from tuples in the order of PLACE's fields: five numbers and a hash."""
    found = np.zeros(len(rows), PLACE)
    for number, row in enumerate(rows):
        found[number] = (*row[:5], np.void(row[5]))
    return found


def unreadable(path: Path, text: str, value: Any = None) -> DataError:
    return DataError(text, where=str(path), value=value, allowed=REMEDY)
