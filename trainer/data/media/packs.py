"""The packs of a split of documents with media: the pieces of documents that fill each window.

A document is placed whole. One that is longer than a window is cut into pieces: before or after an image or signal with
its markers, never inside; text that alone is longer than a window is cut where the window ends. What an image takes
with its markers must fit into a window; documents with a larger one are dropped, and counted.

The packs of a split are made once for each seq_len, by one process, in a directory of the cache:

    <cache>/packs/<checksum of the corpus>-<split>-<seq_len>/manifest.json   of what follows
        train-00000.pieces   for each piece: its first token in the shard, and its tokens, int64
                   .plan     the pieces of each pack, as `packing.Plan`
                   .dropped  documents that do not fit, int64

Everything in it follows from the corpus, whose documents are in a random order of its seed, so that every machine that
makes it makes the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.packing import Plan, plan_packs
from trainer.storage.atomic import atomic_directory
from trainer.storage.lock import FileLock
from trainer.storage.manifest import CorruptError, Manifest

FORMAT = 1  # raise it with any change of the packs
PACKS = Manifest(version=FORMAT, hash_key="checksum", size_key="bytes", compact=True, ascii=False)
Ints = npt.NDArray[np.int64]
Facts = dict[str, Any]
Spans = tuple[Ints, Ints]  # first and last + 1 token of each medium with its markers, in the order of the tokens


def cut(starts: Ints, spans: Spans, capacity: int) -> tuple[Ints, Ints]:
    """Pieces [N, 2] of documents, and the documents [M] that do not fit.

    starts: [D + 1] first token of each document, and the end of the last. spans: media with their markers, each inside
    one document.
    """
    lengths = np.diff(starts)
    fits = lengths <= capacity
    pieces = [np.stack([starts[:-1], lengths], axis=1)[fits & (lengths > 0)]]
    dropped = []
    for document in np.flatnonzero(~fits).tolist():
        first, end = int(starts[document]), int(starts[document + 1])
        low, high = np.searchsorted(spans[0], (first, end))
        media = [*zip(spans[0][low:high].tolist(), spans[1][low:high].tolist(), strict=True)]
        found = _cut_one(first, end, media, capacity)
        if found is None:
            dropped.append(document)
        else:
            pieces.append(np.array(found, np.int64).reshape(-1, 2))
    every = np.concatenate(pieces)
    return every[np.argsort(every[:, 0], kind="stable")], np.array(dropped, np.int64)


def _cut_one(first: int, end: int, media: Sequence[tuple[int, int]], capacity: int) -> list[tuple[int, int]] | None:
    """(first token, tokens) of the pieces of a document; None where a medium is longer than a piece may be."""
    if any(stop - start > capacity for start, stop in media):
        return None
    edges = sorted({edge for span in media for edge in span})
    pieces = []
    while end - first > capacity:
        inside = [edge for edge in edges if first < edge <= first + capacity]
        at = inside[-1] if inside else first + capacity
        pieces.append((first, at - first))
        first = at
    return [*pieces, (first, end - first)]


class Packs:
    """The packs of one split at one seq_len, from its directory. A shard's are mapped when first asked for."""

    def __init__(self, directory: Path) -> None:
        """Raises CorruptError."""
        self._directory = directory
        self.manifest = PACKS.read(directory)
        self.counts: list[int] = [shard["packs"] for shard in self.manifest["shards"]]
        self._open: dict[int, tuple[Plan, Ints]] = {}

    @property
    def dropped(self) -> int:
        """Documents that do not fit into a window."""
        return sum(shard["dropped_documents"] for shard in self.manifest["shards"])

    def total(self, key: str) -> int:
        """A count of the shards' facts: packs, tokens, padding, pieces or dropped_documents."""
        return sum(shard[key] for shard in self.manifest["shards"])

    def dropped_documents(self, shard: int) -> Ints:
        """The documents of a shard that do not fit into a window, from 0."""
        return np.fromfile(self._directory / f"{self.manifest['shards'][shard]['stem']}.dropped", "<i8")

    def pieces(self, shard: int, pack: int) -> tuple[Ints, Ints]:
        """Pieces [n, 2] of a pack (first token in the shard, tokens), and the place of each in the window [n].

        Raises DataError where the files are corrupt.
        """
        if shard not in self._open:
            stem = self.manifest["shards"][shard]["stem"]
            for name in (f"{stem}.pieces", f"{stem}.plan"):
                if damage := PACKS.check_file(self._directory, name, self.manifest["files"][name]):
                    remedy = f"remove {self._directory}, and the packs are made again"
                    raise DataError(f"{damage}; {remedy}", where=str(damage.path), value=damage.value, allowed=remedy)
            table = np.asarray(np.memmap(self._directory / f"{stem}.pieces", "<i8", mode="r")).reshape(-1, 2)
            self._open[shard] = Plan.open(self._directory / f"{stem}.plan", table[:, 1]), table
        plan, table = self._open[shard]
        members, places = plan.pack(pack)
        return table[members], np.asarray(places)


def open_packs(
    cache: Path, key: str, shards: Sequence[str], make: Callable[[int], tuple[Ints, Ints]], capacity: int
) -> Packs:
    """The packs of a split; made by the first process that asks, while others wait.

    key: names the corpus, the split and the seq_len. shards: their stems. make: the pieces and dropped documents of a
    shard, as `cut` returns them. Raises DataError where the cache cannot be written.
    """
    directory = cache / "packs" / key
    try:
        if (found := _intact(directory)) is not None:
            return found
        with FileLock(directory.with_name(f"{key}.lock"), wait=None):
            if (found := _intact(directory)) is None:
                shutil.rmtree(directory, ignore_errors=True)
                _make(directory, shards, make, capacity)
                found = Packs(directory)
        return found
    except OSError as error:
        path, allowed = error.filename or directory, "a directory that can be written"
        text = f"{path}: {error.strerror or error}; use {allowed} as data.cache_dir"
        raise DataError(text, where="data.cache_dir", value=str(cache), allowed=allowed) from error


def _intact(directory: Path) -> Packs | None:
    try:
        found = Packs(directory)
    except CorruptError:
        return None
    files = found.manifest["files"]
    return None if any(PACKS.check_size(directory, name, files[name]) for name in files) else found


def _make(directory: Path, shards: Sequence[str], make: Callable[[int], tuple[Ints, Ints]], capacity: int) -> None:
    facts, files = [], {}
    with atomic_directory(directory) as work:
        for number, stem in enumerate(shards):
            pieces, dropped = make(number)
            plan = plan_packs(pieces[:, 1], capacity)
            plan.save(work / f"{stem}.plan")
            pieces.astype("<i8").tofile(work / f"{stem}.pieces")
            dropped.astype("<i8").tofile(work / f"{stem}.dropped")
            for suffix in (".plan", ".pieces", ".dropped"):
                files[stem + suffix] = PACKS.file_facts(work / (stem + suffix))
            facts.append(
                {
                    "stem": stem, "packs": plan.num_packs, "tokens": plan.packed_tokens, "padding": plan.padded_tokens,
                    "pieces": len(pieces), "dropped_documents": len(dropped),
                }
            )  # fmt: skip
        PACKS.write(work, {"capacity": capacity, "shards": facts}, files)
