"""First pass: write the documents of a unit as tokens, sorted by a random key.

Every document gets a 64-bit key, a hash of (seed, source, unit, row): the order of the keys is the shuffled order of
the whole source. A unit's documents go to part files, each sorted by key. A shard is a range of keys, so the second
pass finds its documents in one piece per part, and no process ever has more than a part or a shard in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.corpora.tokenize.media.encode import Bad, Interleaved
from trainer.corpora.tokenize.media.spooled import PartMedia
from trainer.data.errors import DataError
from trainer.data.hashing import mix64, text_key
from trainer.data.media.rules import MediaRules
from trainer.data.media.store import MEDIA, Stored
from trainer.data.shards.losses import Losses
from trainer.data.shards.prefixes import Prefixes
from trainer.data.shards.tokenizer import Tokenizer
from trainer.storage.atomic import atomic_file

PART_TOKENS, PART_BYTES = 1 << 24, 1 << 30  # of a part: its tokens, and its media
BATCH_BYTES, BATCH_DOCUMENTS = 1 << 20, 512  # given to the tokenizer at once
# What a source's manifest counts besides: what is left out, and what its tokens do not say of the texts.
COUNTS = (
    "empty_documents",
    "documents_without_tokens",
    "unknown_tokens",
    "lost_characters",
    "inner_ends",
    "signal_steps_left_out",
    "signals_without_rate",
)
VIDEO_TOKENS = ("<|video_pad|>", "<VIDEO_CONTEXT>", "<video>")
HEADER = 16  # documents and tokens, uint64 each
TRAIN, HELDOUT = "train", "heldout"

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Facts = dict[str, Any]
Encoded = tuple[int, int, list[int]]
Content = str | Interleaved
Batch = Sequence[tuple[int, str, Content]]  # number in the unit, origin, content


class LeftOut(NamedTuple):
    """A document that is left out, and the reason."""

    where: str
    problem: str


class UnfitError(Exception):
    """A document that cannot be stored. number: among those of its unit, from 0, the empty ones included."""

    def __init__(self, number: int, problem: str, value: Any, allowed: str) -> None:
        super().__init__(number, problem, value, allowed)
        self.number, self.problem, self.value, self.allowed = number, problem, value, allowed


@dataclass
class Encoder:
    """Turns the documents of a source into tokens."""

    tokenizer: Tokenizer
    dtype: np.dtype[Any]
    name: str
    seed: int
    heldout_fraction: float
    prefixes: Prefixes | None = None
    group: str | None = None
    at_least: int = 0  # an origin whose hash is below this is held out whatever the fraction
    after: tuple[int, ...] = ()  # ids between a text and the end token
    rules: MediaRules | None = None
    skip: bool = False  # leave out documents with bad media, and count them
    heldout_origins: Sequence[str] = ()  # held out whatever their hashes
    heldout_below: int = field(init=False)
    heldout: frozenset[int] = field(init=False)  # hashes of `heldout_origins`
    losses: Losses = field(init=False)
    refused: dict[int, str] = field(init=False)  # tokens that texts beside media may not give

    def __post_init__(self) -> None:
        self.heldout_below = max(self.at_least, min(round(self.heldout_fraction * 2**64), 2**64 - 1))
        self.heldout = frozenset(self.hash_of(origin) for origin in self.heldout_origins)
        self.losses = Losses(self.tokenizer)
        videos = {self.tokenizer.id_of(name): "videos, which are not supported" for name in VIDEO_TOKENS}
        self.refused = {token: what for token, what in videos.items() if token is not None}
        self.refused |= {kind.token: f"{name}s" for name, kind in (self.rules.kinds if self.rules else {}).items()}

    def contents_of(self, batch: Batch) -> list[tuple[list[int], Sequence[Stored]] | LeftOut]:
        """The ids and the media of each document. Raises UnfitError, and DataError unless `skip`."""
        texts = [(number, origin, text) for number, origin, content in batch for text in texts_of(content)]
        encoded = iter(self.ids_of(texts))
        found: list[tuple[list[int], Sequence[Stored]] | LeftOut] = []
        for _, _, content in batch:
            ids_of_texts = [next(encoded) for _ in texts_of(content)]
            if isinstance(content, str):
                found.append((ids_of_texts[0], ()))
                continue
            assert self.rules is not None
            if given := self.refused.keys() & {token for ids in ids_of_texts for token in ids}:
                problem = f"a text gives the token {min(given)}, a placeholder of {self.refused[min(given)]}"
                found.append(self.left_out(content.where(), problem, min(given)))
            else:
                found.append(content.place(ids_of_texts, self.rules))
        return found

    def left_out(self, where: str, problem: str, value: Any) -> LeftOut:
        """The record of a document that is left out. Raises DataError unless `skip`."""
        if self.skip:
            return LeftOut(where, problem)
        allowed = "correct the document, or --bad-media skip"
        raise DataError(f"{where}: {problem}; {allowed}", where=where, value=value, allowed=allowed)

    def ids_of(self, batch: Sequence[tuple[int, str, str]]) -> list[list[int]]:
        """The ids of each text. batch: (number in the unit, origin, text). Raises UnfitError."""
        try:
            encoded = self.tokenizer.encode_all([text for _, _, text in batch])
        except DataError:
            for number, _, text in batch:
                try:
                    self.tokenizer.encode_all([text])
                except DataError as error:
                    fault = error.faults[0]
                    raise UnfitError(number, str(error), fault.value, str(fault.allowed)) from None
            raise
        if self.tokenizer.special_text == "spell":
            for (number, _, _), ids in zip(batch, encoded, strict=True):
                if self.tokenizer.eos_id in ids:
                    end = self.tokenizer.end_of_document
                    problem = f"the text gives the token {end}, which would end the document early"
                    raise UnfitError(number, problem, end, "another --eos, or the text without it")
        return encoded

    def encode(self, unit: int, first_row: int, documents: list[tuple[str, list[int]]]) -> Iterator[Encoded]:
        """(hash of the origin, key, tokens) of each (origin, ids), the rows first_row, first_row + 1, ... of a unit.

        Documents of one origin share their split; a text without an origin is its own, so that copies of it do.
        """
        rows = np.arange(first_row, first_row + len(documents))
        numbers = (unit << 32) + rows
        keys = mix64(self.seed, text_key("order", self.name), numbers).tolist()
        before = [self.tokenizer.before] * len(documents)
        if self.prefixes is not None and self.group is not None:
            chosen = self.prefixes.choose(self.group, self.name, numbers, self.seed)
            before = [list(self.prefixes.ids[self.group][choice]) for choice in chosen.tolist()]
        end = [*self.after, self.tokenizer.eos_id]
        for key, start, (origin, ids) in zip(keys, before, documents, strict=True):
            yield self.hash_of(origin), key, [*start, *ids, *end]

    def hash_of(self, origin: str) -> int:
        """The 64-bit hash that decides the split of an origin."""
        return _hash_of(self.seed, origin)

    def split_of(self, of_origin: int) -> str:
        """The split of an origin, by its hash."""
        return HELDOUT if of_origin < self.heldout_below or of_origin in self.heldout else TRAIN


def spool_unit(
    directory: Path,
    unit: int,
    documents: Iterable[tuple[int, str, Content | Bad]],
    encoder: Encoder,
    on_progress: Callable[[int, int], None] | None = None,
    unread: Mapping[str, int] | None = None,
) -> Facts:
    """Write the parts of a unit and, last, `<unit>.json`; return its content.

    documents: (bytes read so far, origin, content). on_progress: called with the bytes and tokens so far. unread:
    counts the members of tars that are not read, by suffix. Raises UnfitError.
    """
    parts: list[Facts] = []
    gathered = {split: _PartWriter(directory / f"{unit:06}-{split}") for split in (TRAIN, HELDOUT)}
    left_out: list[LeftOut] = []
    counts = dict.fromkeys(COUNTS, 0)
    rows = tokens = read = 0
    lowest, highest = 2**64, -1  # hash of an origin
    listed: set[int] = set()  # hashes of listed origins that documents have

    def flush(batch: list[tuple[int, str, Content]]) -> None:
        nonlocal tokens, lowest, highest, listed
        contents = encoder.contents_of(batch)
        left_out.extend(item for item in contents if isinstance(item, LeftOut))
        encoded = [[] if isinstance(item, LeftOut) else item[0] for item in contents]
        counts["unknown_tokens"] += encoder.losses.unknown(encoded)
        counts["lost_characters"] += encoder.losses.vanished([text for *_, item in batch for text in texts_of(item)])
        if encoder.tokenizer.special_text == "encode":
            counts["inner_ends"] += sum(ids.count(encoder.tokenizer.eos_id) for ids in encoded)
        found = [(origin, ids) for (_, origin, _), ids in zip(batch, encoded, strict=True)]
        every = encoder.encode(unit, rows - len(batch), found)
        for (of_origin, key, ids), (_, own), item in zip(every, found, contents, strict=True):
            if isinstance(item, LeftOut):
                continue
            if not own:
                counts["documents_without_tokens"] += 1
                continue
            lowest, highest = min(lowest, of_origin), max(highest, of_origin)
            split = encoder.split_of(of_origin)
            listed |= {of_origin} & encoder.heldout
            part = gathered[split]
            counts["signal_steps_left_out"] += sum(medium.left_out for medium in item[1])
            counts["signals_without_rate"] += sum(medium.without_rate for medium in item[1])
            before = len(ids) - len(own) - len(encoder.after) - 1
            part.add(key, ids, [replace(medium, first=medium.first + before) for medium in item[1]])
            tokens += len(ids)
            if part.tokens >= PART_TOKENS or part.media.nbytes >= PART_BYTES:
                parts.append(part.write(directory / f"{unit:06}-{len(parts):04}", split, encoder.dtype))
        if on_progress is not None:
            on_progress(read, tokens)

    batch: list[tuple[int, str, Content]] = []
    size = 0
    for number, (read, origin, content) in enumerate(documents):  # noqa: B007
        if isinstance(content, Bad):
            left_out.append(encoder.left_out(content.where(), content.problem, content.value))
            continue
        if not content:
            counts["empty_documents"] += 1
            continue
        batch.append((number, origin, content))
        rows += 1
        size += len(content)
        if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
            flush(batch)
            batch, size = [], 0
    if batch:
        flush(batch)
    for split, part in gathered.items():
        if part.keys:
            parts.append(part.write(directory / f"{unit:06}-{len(parts):04}", split, encoder.dtype))
    facts = {
        "unit": unit, "documents": rows, "counts": counts, "tokens": tokens, "parts": parts,
        "origins": [lowest, highest], "heldout_below": encoder.heldout_below, "left_out": left_out,
        "unread": dict(unread or {}), "listed": sorted(listed),
    }  # fmt: skip
    write_json(directory / f"{unit:06}.json", facts)
    return facts


def lacks_heldout(spooled: Sequence[Facts]) -> int:
    """One more than the lowest hash of an origin if the fraction holds out none of several origins, so that this one is
    held out; else 0. The result is stable until every unit with that origin is redone."""
    lowest, highest = (pick(facts["origins"][end] for facts in spooled) for end, pick in ((0, min), (1, max)))
    fraction = min(facts["heldout_below"] for facts in spooled)
    return lowest + 1 if 0 < fraction <= lowest < highest else 0


def _hash_of(seed: int, origin: str) -> int:
    return text_key("heldout", str(seed), origin)


def check_heldout(spooled: Sequence[Facts], origins: Sequence[str], seed: int) -> list[str]:
    """Return those of the origins to hold out that no document has. Raises DataError if no document has any of them."""
    found = {one for facts in spooled for one in facts.get("listed", ())}
    if origins and not found:
        remedy = "give origins as the field of --origin has them"
        text = f"no document has one of the {len(origins)} origins to hold out, first {origins[0]!r}; {remedy}"
        raise DataError(text, where="--heldout-origins", value=origins[0], allowed=remedy)
    return [origin for origin in origins if _hash_of(seed, origin) not in found]


class _PartWriter:
    """Gathers documents for a part file."""

    def __init__(self, stem: Path) -> None:
        self._stem, self._written = stem, 0
        self.clear()

    def clear(self) -> None:
        self.media = PartMedia(self._stem.with_name(f"{self._stem.name}-{self._written}{MEDIA}"))
        self.keys: list[int] = []
        self.lengths: list[int] = []
        self.ids: list[npt.NDArray[np.int32]] = []
        self.tokens = 0

    def add(self, key: int, ids: list[int], media: Sequence[Stored]) -> None:
        self.media.add(media)
        self.keys.append(key)
        self.lengths.append(len(ids))
        self.ids.append(np.array(ids, np.int32))
        self.tokens += len(ids)

    def write(self, path: Path, split: str, dtype: np.dtype[Any]) -> Facts:
        """Write the gathered documents in the order of their keys, and start over."""
        order = np.argsort(np.array(self.keys, np.uint64), kind="stable")
        header = np.array([len(self.keys), self.tokens], "<u8").tobytes()
        keys = np.array(self.keys, "<u8")[order].tobytes()
        ends_D = np.cumsum(np.array(self.lengths, "<i8")[order])
        ends = ends_D.tobytes()
        ids = np.concatenate([self.ids[place] for place in order.tolist()]).astype(dtype).tobytes()
        hashed = hashlib.sha256()
        with atomic_file(path, durable=False) as temporary, open(temporary, "wb") as file:
            for piece in (header, keys, ends, ids):
                file.write(piece)
                hashed.update(piece)
        facts = {
            "file": path.name, "split": split, "documents": len(self.keys), "tokens": self.tokens,
            "sha256": hashed.hexdigest(),
        }  # fmt: skip
        if media := self.media.write(order.tolist(), [0, *ends_D[:-1].tolist()]):
            facts["media"] = media
        self._written += 1
        self.clear()
        return facts


def finished_unit(directory: Path, unit: int) -> Facts | None:
    """The facts that `spool_unit` returned for a unit, if it finished and its parts are intact."""
    try:
        facts: Facts = json.loads((directory / f"{unit:06}.json").read_text())
        for part in facts["parts"]:
            for name, digest in {part["file"]: part["sha256"], **part.get("media", {})}.items():
                with (directory / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        return None
    except (OSError, ValueError):
        return None
    return facts


class PartFile:
    """A part file in a memory map: keys and document ends, in the order of the keys."""

    def __init__(self, path: Path, facts: Facts, dtype: np.dtype[Any]) -> None:
        n, tokens = facts["documents"], facts["tokens"]
        if path.stat().st_size != HEADER + 16 * n + tokens * dtype.itemsize:
            raise DataError(
                f"{path} is truncated: run the command again to redo the missing part",
                where=str(path),
                value=path.stat().st_size,
                allowed="run the command again",
            )
        content = np.memmap(path, np.uint8, mode="r")
        self.keys: U64 = content[HEADER : HEADER + 8 * n].view("<u8")
        self.ends: Ints = content[HEADER + 8 * n : HEADER + 16 * n].view("<i8")
        self._tokens = content[HEADER + 16 * n :].view(dtype)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The first document with first <= key < last, and the one behind them."""
        low = int(np.searchsorted(self.keys, np.uint64(first)))
        return low, len(self.keys) if last >= 2**64 else int(np.searchsorted(self.keys, np.uint64(last)))

    def between(self, first: int, last: int) -> tuple[U64, Ints, npt.NDArray[Any]]:
        """Keys, lengths and tokens of the documents with first <= key < last."""
        low, high = self.span(first, last)
        start = int(self.ends[low - 1]) if low else 0
        ends = self.ends[low:high]
        return (
            self.keys[low:high],
            np.diff(ends, prepend=start),
            self._tokens[start : int(ends[-1]) if len(ends) else start],
        )


def texts_of(content: Content) -> list[str]:
    """The texts of a document."""
    return [content] if isinstance(content, str) else content.texts


def write_json(path: Path, facts: Facts | list[Facts]) -> None:
    """Write a file completely or not at all, even if the process is killed."""
    with atomic_file(path, durable=False) as temporary:
        temporary.write_text(json.dumps(facts))
