"""Media between the two passes: written beside each part of a unit, gathered and put in order for a shard."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.media.store import KINDS, MEDIA, PLACE, PLACES, MediaFiles, MediaWriter, Places, Stored, places
from trainer.storage.atomic import atomic_file

Facts = dict[str, Any]
MEDIA_COUNTS = ("records", "distinct_media", "media_tokens", *(f"{name}s" for name in KINDS))
Ints = npt.NDArray[np.int64]


class PartMedia:
    """The media of a part while its documents are gathered: their bytes go to a file at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: MediaWriter | None = None
        self._rows: list[list[tuple[int, int, int, int, int, bytes]]] = []  # of each document

    @property
    def nbytes(self) -> int:
        """Bytes of the media so far."""
        return 0 if self._writer is None else self._writer.nbytes

    def add(self, media: Sequence[Stored]) -> None:
        """The media of the next document."""
        rows = []
        for medium in media:
            self._writer = self._writer or MediaWriter(self._path)
            digest = medium.digest
            offset = self._writer.add(medium.data, digest)
            rows.append((medium.first, medium.tokens, medium.kind, offset, len(medium.data), digest))
        self._rows.append(rows)

    def write(self, order: Sequence[int], starts: Sequence[int]) -> dict[str, str] | None:
        """Write the places, counted from the part's first token; return the SHA-256 of both files by their names.

        order: the documents as they are in the part. starts: the first token of each there. None without media.
        """
        if self._writer is None:
            return None
        rows = [
            (start + first, *row)
            for document, start in zip(order, starts, strict=True)
            for first, *row in self._rows[document]
        ]
        table = places(rows).tobytes()
        path = self._path.with_suffix(PLACES)
        path.write_bytes(table)
        return {self._path.name: self._writer.close(), path.name: hashlib.sha256(table).hexdigest()}


def unread_members(spooled: Sequence[Facts]) -> list[str]:
    """A line about the members of tars that were not read, if there are any. spooled: the facts of units."""
    total = sum((Counter(facts.get("unread", {})) for facts in spooled), Counter[str]())
    named = ", ".join(f"{count:,} .{suffix}" for suffix, count in total.most_common(8))
    return [f"members of tars that are not read: {named}{', ...' if len(total) > 8 else ''}"] if total else []


def gathered(path: Path, ends: Ints, low: int, high: int) -> tuple[Places, Ints]:
    """The records of the documents low .. high - 1 of a part, with the first token counted in its document, and the
    number of that document from `low`. path: of the part's media. ends: of all documents of the part."""
    table = np.fromfile(path.with_suffix(PLACES), PLACE)
    starts = np.concatenate([[0], ends])
    inside = table[(table["first"] >= starts[low]) & (table["first"] < starts[high])]
    documents = np.searchsorted(starts, inside["first"], side="right") - 1
    inside["first"] -= starts[documents]
    return inside, documents - low


def write_media(stem: Path, parts: Sequence[tuple[Path, Places, Ints]]) -> Facts:
    """Write `<stem>.media` and `.places` of a shard; return the number of records, and of each kind.

    parts: the media files of the parts, their records, and the first token of each one's document in the shard [n].
    """
    records = np.concatenate([np.empty(0, PLACE), *(some for _, some, _ in parts)])
    firsts = np.concatenate([np.empty(0, np.int64), *(at for _, _, at in parts)])
    owners = np.repeat(np.arange(len(parts)), [len(some) for _, some, _ in parts])
    records["first"] += firsts
    order = np.argsort(records["first"], kind="stable")
    files = MediaFiles()
    with atomic_file(stem.with_name(stem.name + MEDIA)) as temporary:
        writer = MediaWriter(temporary)
        for number in order.tolist():
            record = records[number]
            data = files.read(parts[owners[number]][0], record)
            records["offset"][number] = writer.add(data, record["digest"].tobytes())
        writer.close()
    with atomic_file(stem.with_name(stem.name + PLACES)) as temporary:
        records[order].tofile(temporary)
    counts = {name: int(np.count_nonzero(records["kind"] == number)) for number, name in enumerate(KINDS)}
    return {
        "records": len(records),
        "distinct_media": writer.distinct,
        "media_tokens": int(records["tokens"].sum()),
        **{f"{name}s": count for name, count in counts.items()},
    }
