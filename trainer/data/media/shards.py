"""One tokenized source of documents with images or signals: its packs as a row of windows, like a source of text.

Window w of the source is a pack: whole documents (or pieces of long ones, see `packs`) one after the other, and the end
token behind them. The media of a window are read and prepared here, in the process that reads ahead.

A piece with an image or signal that cannot be read is left out: it stays in its place, end tokens in the places of its
media, and is not trained on. The other documents of its pack are as they would be, since none sees another.

Shape legend: N windows · L = S + 1 tokens of each · P pieces
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.data.errors import DataError
from trainer.data.media.packs import Packs, cut, open_packs
from trainer.data.media.rules import MediaRules
from trainer.data.media.store import KINDS, MEDIA, PLACES, MediaFiles, Places, PlaceTable, unreadable
from trainer.data.shards.windows import Bools, Ints, Shards
from trainer.data.windows import Prepared, Windows


class MediaShards(Shards):
    """The packs of one split of a source whose manifest has rules for media. Raises DataError as `Shards` does."""

    def __init__(
        self,
        directory: Path,
        split: Literal["train", "heldout"] = "train",
        *,
        reader: Literal["octavo", "megatron"] = "octavo",
        cut_short: bool = False,
        leave_out: bool = False,
        cache: Path,
    ) -> None:
        """leave_out: pieces with media that cannot be read. cache: where the packs are made."""
        super().__init__(directory, split, reader=reader, cut_short=cut_short)
        self.rules = MediaRules.from_json(self.manifest["media"])
        self._cache, self._leave_out = cache, leave_out
        self._packs: dict[int, Packs] = {}  # by seq_len
        self._media, self._places = MediaFiles(), dict[int, PlaceTable]()
        self._eos: int = self.manifest["tokenizer"]["eos_id"]

    def packs(self, seq_len: int) -> Packs:
        """The packs of `seq_len` tokens; made now, or read, if this is the first call."""
        if seq_len not in self._packs:
            key = f"{self.fingerprint[:16]}-{self.split}-{seq_len}"
            stems = [shard["stem"] for shard in self._shards]
            make = functools.partial(self._pieces, capacity=seq_len)
            self._packs[seq_len] = open_packs(self._cache, key, stems, make, seq_len)
        return self._packs[seq_len]

    def _bounds(self, seq_len: int) -> Ints:
        if seq_len not in self._bounds_of:
            self._bounds_of[seq_len] = np.cumsum([0, *self.packs(seq_len).counts])
        return self._bounds_of[seq_len]

    def _pieces(self, shard: int, capacity: int) -> tuple[Ints, Ints]:
        """The pieces of a shard, and the documents that do not fit, as `packs.cut` returns them."""
        starts = self._starts(shard)
        first, last = self._spans(self._table(shard).between(0, int(starts[-1])))
        return cut(starts, (first, last), capacity)

    def total(self, key: str) -> int:
        """A count of the split: of images, signals or media_tokens."""
        return sum(shard[key] for shard in self._shards)

    def largest_medium(self, seq_len: int) -> tuple[str, int]:
        """The name of a document that does not fit into a window, and the tokens that all of them need."""
        found = (0, "")
        for shard, stem in enumerate(str(facts["stem"]) for facts in self._shards):
            starts = self._starts(shard) if len(self.packs(seq_len).dropped_documents(shard)) else None
            if starts is None:
                continue
            first, last = self._spans(self._table(shard).between(0, int(starts[-1])))
            widest = int((last - first).argmax())
            document = int(np.searchsorted(starts, first[widest], side="right"))
            found = max(found, (int(last[widest] - first[widest]), f"document {document} of {stem}"))
        return found[1], found[0]

    def _starts(self, shard: int) -> Ints:
        return self.files(shard).document_starts()

    def _spans(self, places: Places) -> tuple[Ints, Ints]:
        """The first token of each medium's markers, and the one behind them."""
        kinds = [self.rules.kinds.get(name) for name in KINDS]
        before, after = (
            np.array([len(marks) for marks in found], np.int64)
            for found in (
                [kind.before if kind else () for kind in kinds],
                [kind.after if kind else () for kind in kinds],
            )
        )
        kind, first = places["kind"], places["first"].astype(np.int64)
        return first - before[kind], first + places["tokens"] + after[kind]

    def _table(self, shard: int) -> PlaceTable:
        if shard not in self._places:
            self._places[shard] = PlaceTable(self._file(shard, PLACES), self._shards[shard]["records"])
        return self._places[shard]

    def _file(self, shard: int, suffix: str) -> Path:
        stem = self._stem(shard)
        return stem.with_name(stem.name + suffix)

    def read(self, positions: Ints, seq_len: int, *, media: bool = True) -> Windows:
        """Return the packs at `positions` [N]. media: False leaves the images and signals unread.

        Raises also DataError for media that are missing or corrupt or have other placeholders than their rule gives.
        With `leave_out` their pieces are left out, with a line each in `faults`, and only a pack that has nothing
        left raises.
        """
        bounds = self._bounds(seq_len)
        if len(positions) and not 0 <= positions.min() <= positions.max() < bounds[-1]:
            raise IndexError(f"packs {positions.tolist()} of {self.directory}, which has {bounds[-1]}")
        shards = np.searchsorted(bounds, positions, side="right") - 1
        shape = (len(positions), seq_len + 1)
        tokens, starts = np.full(shape, self._eos, np.int64), np.zeros(shape, np.bool_)
        context, prefix = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        opens: list[tuple[int, int]] = []  # row and place of the documents that start
        prepared: list[Prepared] = []
        bad: dict[int, list[DataError]] = {}  # by row
        for row, shard in enumerate(shards.tolist()):
            pieces, places = self.packs(seq_len).pieces(shard, int(positions[row] - bounds[shard]))
            for (first, length), place in zip(pieces.tolist(), places.tolist(), strict=True):
                if self._piece(shard, first, tokens[row : row + 1, place : place + length]):
                    opens.append((row, place))
                starts[row, place] = True
                try:
                    prepared += [*self._read_media(shard, first, length, row, place, context, read=media)]
                except DataError as error:
                    if not self._leave_out:
                        raise
                    bad.setdefault(row, []).append(error)
                    piece = tokens[row, place : place + length]
                    piece[np.isin(piece, [*self.rules.placeholders])] = self._eos
                    context[row, place : place + length] = True
            end = int(places[-1] + pieces[-1, 1])
            starts[row, end], context[row, end:] = True, True
        self._check_ids(tokens, shards, np.zeros_like(shards))
        if self.prefix_ids:
            row_D, place_D = np.array(opens, np.int64).reshape(-1, 2).T
            self._mark_prefixes(prefix, tokens, row_D, place_D, shards, np.full(len(shards), self._longest))
        found = Windows(tokens, starts, context | prefix, media=tuple(prepared))
        for row, errors in bad.items():
            if not found.supervised_BS[row].any():
                raise errors[0]
        lines = [f"{error.faults[0].text}; not trained on" for errors in bad.values() for error in errors]
        return replace(found, faults=tuple(lines))

    def _piece(self, shard: int, first: int, tokens: Ints) -> bool:
        """Read a piece into `tokens` [1, its length]; True if a document starts with it."""
        files = self.files(shard)
        if first + tokens.shape[1] > self._tokens_in[shard]:
            found, written = self._tokens_in[shard], self._shards[shard]["tokens"]
            text = f"{self._stem(shard)}.bin is truncated: it has {found} of {written} tokens"
            raise self._unreadable(shard, text, found)
        _, place_D = files.read_into(np.array([first]), np.zeros(1, np.int64), tokens)
        if len(place_D) > 1 or (len(place_D) and place_D[0]):
            text = f"{self._stem(shard)}.idx is corrupt: a document starts inside the piece at token {first}"
            raise self._unreadable(shard, text, first)
        return len(place_D) == 1

    def _read_media(
        self, shard: int, first: int, length: int, row: int, place: int, context: Bools, *, read: bool
    ) -> Iterator[Prepared]:
        """Mark the media of a piece in `context`, and yield them."""
        records = self._table(shard).between(first, first + length)
        for medium, start, end in zip(records, *self._spans(records), strict=True):
            context[row, place + start - first : place + end - first] = True
            if not read:
                continue
            kind = KINDS[int(medium["kind"])]
            where = f"{self._stem(shard)}, the {kind} at token {medium['first']}"
            try:
                value, tokens = self._prepare(shard, medium, where)
            except DataError as error:
                document = int(np.searchsorted(self._starts(shard), int(medium["first"]), side="right"))
                fault = error.faults[0]
                raise DataError([replace(fault, text=f"document {document} of {fault.text}")]) from error
            yield Prepared(kind, row, place + int(medium["first"]) - first, tokens, value)

    def _prepare(self, shard: int, medium: np.void, where: str) -> tuple[Any, int]:
        rule, tokens = self.rules.of(int(medium["kind"])), int(medium["tokens"])
        data = self._media.read(self._file(shard, MEDIA), medium)
        found = rule.tokens(data, where)
        if found != tokens:
            text = f"{where} has {tokens} placeholders, but its rule gives {found}"
            raise unreadable(self._file(shard, MEDIA), text, tokens)
        return rule.prepare(data, where), tokens

    def _sized(self, shard: int) -> dict[str, Any]:
        facts = self._shards[shard]
        if not self._cut_short:
            return facts
        # Each medium is checked when it is read, so that a file cut short costs those behind the cut alone.
        name = self._file(shard, MEDIA).name
        return {**facts, "files": {file: known for file, known in facts["files"].items() if file != name}}

    def _readable(self, shard: int, seq_len: int) -> int:
        return self.packs(seq_len).counts[shard]
