"""The index of a directory of tar files with pairs: a row for each pair, memory-mapped.

    <directory>/octavo_index/
        manifest.json    the tar files with their sizes, counts, and the hash of the rows
        rows.bin         ROW, sorted by the hash of the caption

In this order the pairs with one caption are neighbours, and the captions whose hash is below a bound are a held-out
split: a caption is never in both. Nothing of the index is in memory but the pages that are read.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.hashing import bytes_key, text_key
from trainer.storage.boxes import read_into
from trainer.storage.manifest import CorruptError, Manifest

INDEX, ROWS = "octavo_index", "rows.bin"
PAIRS = Manifest(version=1, hash_key="checksum", size_key="bytes", compact=True, ascii=False)
ROW = np.dtype(
    [
        ("caption", "<u8"),  # hash of the caption's words
        ("image", "<u8"),  # hash of the image's bytes
        ("image_at", "<u8"),  # where they are in the tar file, and how many
        ("image_bytes", "<u4"),
        ("text_at", "<u8"),
        ("text_bytes", "<u4"),
        ("text", "<u4"),  # kind of the text: a place in TEXTS
        ("tar", "<u4"),  # number of the tar file in the manifest
    ]
)
TEXTS = ("txt", "json", "cls")  # a caption; a JSON object with `caption`; the number of a class
OPEN_FILES = 32
REMEDY = "remove it and run `octavo data index` again"

Ints = npt.NDArray[np.int64]


def caption_key(caption: str) -> int:
    """Hash of a caption; alike for captions that differ in spaces or upper case alone."""
    return text_key(" ".join(caption.split()).casefold())


class PairIndex:
    """The pairs of one directory. Raises DataError for an index that is missing, of another size, or unreadable."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = read_index(directory)
        path, facts = directory / INDEX / ROWS, self.manifest["files"][ROWS]
        if (fault := PAIRS.check_size(directory / INDEX, ROWS, facts)) is not None:
            raise _damaged(fault)
        self._rows = np.memmap(path, ROW, "r") if facts["bytes"] else np.zeros(0, ROW)
        self._tars: list[dict[str, Any]] = self.manifest["tars"]
        self._open: OrderedDict[int, int] = OrderedDict()  # number of a tar file -> its descriptor

    def __len__(self) -> int:
        return len(self._rows)

    def verify(self) -> None:
        """Raises DataError where the rows are not as written."""
        if (fault := PAIRS.check_file(self.directory / INDEX, ROWS, self.manifest["files"][ROWS])) is not None:
            raise _damaged(fault)

    def below(self, share: float) -> int:
        """Number of the first row whose caption's hash is not in the lowest `share` of all hashes."""
        bound, low, high = int(share * 2**64), 0, len(self)
        while low < high:  # searchsorted would copy the whole column
            middle = (low + high) // 2
            low, high = (middle + 1, high) if int(self._rows[middle]["caption"]) < bound else (low, middle)
        return low

    def rows(self, numbers: Ints | Sequence[int]) -> npt.NDArray[np.void]:
        """Rows [n] of `numbers` [n], copied."""
        return np.array(self._rows[np.asarray(numbers, np.int64)])

    def image(self, row: np.void) -> bytes:
        """The bytes of a pair's image. Raises DataError where they are not those that were indexed."""
        data = self._bytes(row, int(row["image_at"]), int(row["image_bytes"]))
        if bytes_key(data) != int(row["image"]):
            raise self._changed(row, "its image is not the one that was indexed")
        return data

    def text(self, row: np.void) -> str:
        """A pair's caption, or the number of its class. Raises DataError where it is not the one that was indexed."""
        data = self._bytes(row, int(row["text_at"]), int(row["text_bytes"]))
        text = text_of(data, TEXTS[int(row["text"])])
        if text is None or caption_key(text) != int(row["caption"]):
            raise self._changed(row, "its caption is not the one that was indexed")
        return text

    def place(self, row: np.void) -> str:
        """The tar file and the byte of a pair's image, for a message."""
        return f"{self.directory / self._tars[int(row['tar'])]['name']}, byte {int(row['image_at'])}"

    def _bytes(self, row: np.void, start: int, count: int) -> bytes:
        data = bytearray(count)
        try:
            read_into(self._file(int(row["tar"])), memoryview(data), start)
        except (OSError, EOFError) as error:
            raise self._changed(row, f"it cannot be read ({error})") from None
        return bytes(data)

    def _file(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[number] = os.open(self.directory / self._tars[number]["name"], os.O_RDONLY)
        return self._open[number]

    def _changed(self, row: np.void, why: str) -> DataError:
        path = self.directory / self._tars[int(row["tar"])]["name"]
        remedy = f"restore the file, or remove {self.directory / INDEX} and run `octavo data index` again"
        return DataError(f"{self.place(row)}: {why}; {remedy}", where=str(path), value=why, allowed=remedy)

    def __del__(self) -> None:
        for file in getattr(self, "_open", {}).values():
            os.close(file)


def read_index(directory: Path) -> dict[str, Any]:
    """The manifest of a directory's index. Raises DataError."""
    try:
        return PAIRS.read(directory / INDEX)
    except CorruptError as damage:
        raise _damaged(damage) from None


def text_of(data: bytes, kind: str) -> str | None:
    """The caption in the bytes of a text file or of a JSON object, or a class; None where there is none."""
    try:
        text = data.decode("utf-8")
        found = json.loads(text).get("caption") if kind == "json" else text
    except (ValueError, AttributeError):
        return None
    return found.strip() or None if isinstance(found, str) else None


def _damaged(fault: CorruptError) -> DataError:
    remedy = "run `octavo data index` first" if fault.missing else REMEDY
    return DataError(f"{fault}; {remedy}", where=str(fault.path), value=fault.value, allowed=remedy)
