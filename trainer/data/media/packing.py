"""Packs of samples that cannot be cut because they contain an image or a signal.

Text is one stream per source, so its windows need no plan. Samples of given lengths are packed best-fit-decreasing,
once and before training; the plan is a file that training maps into memory. Its header holds its own hash, as a
`storage.manifest` describes a directory and not a single file. A pack is then a unit of a source like a window of text:
the mixture numbers packs, and the plan says which samples are in pack p and where.

N samples · M of them placed · P packs
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file

MAGIC = b"OCTPLAN1"
DROPPED = -1
ARRAYS = ("offsets", "members", "starts", "pack_of")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Samples in packs of `capacity` tokens. All arrays are int64, and read-only maps where the plan was opened."""

    capacity: int
    lengths_sha256: str  # of the samples' lengths as little-endian int64: what the plan was made for
    packed_tokens: int
    dropped_tokens: int  # of samples longer than a pack
    offsets: Ints  # [P + 1]: pack p holds members offsets[p] .. offsets[p + 1] - 1
    members: Ints  # [M] sample numbers, in the order of their packs
    starts: Ints  # [M] the first token of each in its pack
    pack_of: Ints  # [N] the pack of each sample, DROPPED where it has none

    @property
    def num_packs(self) -> int:
        return len(self.offsets) - 1

    @property
    def padded_tokens(self) -> int:
        return self.num_packs * self.capacity - self.packed_tokens

    @property
    def dropped_samples(self) -> int:
        return len(self.pack_of) - len(self.members)

    def pack(self, number: int) -> tuple[Ints, Ints]:
        """Sample numbers in a pack, and the first token of each. Raises IndexError."""
        if not 0 <= number < self.num_packs:
            raise IndexError(f"pack {number} of {self.num_packs}")
        inside = slice(self.offsets[number], self.offsets[number + 1])
        return self.members[inside], self.starts[inside]

    def save(self, path: Path) -> None:
        """Write the plan; the file has its name only once it is whole."""
        arrays = [getattr(self, name).astype("<i8", copy=False) for name in ARRAYS]
        payload = hashlib.sha256()
        for array in arrays:
            payload.update(array.data)
        header = {
            "capacity": self.capacity,
            "lengths_sha256": self.lengths_sha256,
            "packed_tokens": self.packed_tokens,
            "dropped_tokens": self.dropped_tokens,
            "sizes": {name: len(array) for name, array in zip(ARRAYS, arrays, strict=True)},
            "sha256": payload.hexdigest(),
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the arrays are aligned to int64
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            file.write(MAGIC + len(text).to_bytes(8, "little") + text)
            for array in arrays:
                file.write(array.data)

    @classmethod
    def open(cls, path: Path, lengths: Sequence[int] | Ints) -> Plan:
        """Map a plan made for samples of these lengths. Raises DataError where it is corrupt or for other samples."""
        header, arrays_at = _header(path)
        if header["lengths_sha256"] != _lengths_sha256(np.asarray(lengths, "<i8")):
            raise _unusable(path, "was planned for samples of other lengths")
        words = sum(header["sizes"].values())
        if path.stat().st_size != arrays_at + 8 * words:
            size = path.stat().st_size
            raise _unusable(path, f"is corrupt: it has {size} bytes, not {arrays_at + 8 * words}", size)
        mapped = np.memmap(path, "<i8", mode="r", offset=arrays_at, shape=(words,))
        if hashlib.sha256(mapped.data).hexdigest() != header["sha256"]:
            raise _unusable(path, "is corrupt: its SHA-256 is not the one in its header")
        ends = np.cumsum(list(header["sizes"].values())).tolist()
        facts: dict[str, Any] = dict(zip(ARRAYS, np.split(np.asarray(mapped), ends[:-1]), strict=True))
        facts |= {key: header[key] for key in ("capacity", "lengths_sha256", "packed_tokens", "dropped_tokens")}
        return cls(**facts)


def plan_packs(lengths: Sequence[int] | Ints, capacity: int) -> Plan:
    """Best fit decreasing: the longest sample first, each into the pack that it leaves the least room in.

    lengths: [N] tokens of each sample. Equal lengths go in the order of their numbers, so the plan is a function of its
    arguments alone. Samples longer than a pack are dropped and counted. Raises DataError for a length below 1.

    Samples of one length are placed together: the cost grows with the number of distinct lengths, not of samples.
    """
    sizes = np.asarray(lengths, np.int64)
    for where, value in (("capacity", capacity), ("lengths", int(sizes.min(initial=1)))):
        if value < 1:
            text = f"{where}: {value} tokens in a pack or a sample; need 1 or more"
            raise DataError(text, where=where, value=value, allowed="1 or more")
    pack_of, start_of = np.full(len(sizes), DROPPED, np.int64), np.zeros(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    order = order[np.count_nonzero(sizes > capacity) :]
    room = _Room(capacity)
    longest_first, counts = np.unique(-sizes[order], return_counts=True)
    done = 0
    for length, count in zip((-longest_first).tolist(), counts.tolist(), strict=True):
        while count:
            packs, remaining = room.take(length, count)
            each = remaining // length
            placed = min(count, each * len(packs))
            samples = order[done : done + placed]
            pack_of[samples] = np.repeat(packs, each)[:placed]
            start_of[samples] = capacity - remaining + np.tile(np.arange(each) * length, len(packs))[:placed]
            in_last = placed - each * (len(packs) - 1)
            room.give(packs[:-1], remaining - each * length)
            room.give(packs[-1:], remaining - in_last * length)
            done, count = done + placed, count - placed
    members = order[np.lexsort((start_of[order], pack_of[order]))]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pack_of[members], minlength=room.opened))]).astype(np.int64)
    packed = int(sizes[members].sum())
    return Plan(
        capacity=capacity,
        lengths_sha256=_lengths_sha256(sizes),
        packed_tokens=packed,
        dropped_tokens=int(sizes.sum()) - packed,
        offsets=offsets,
        members=members,
        starts=start_of[members],
        pack_of=pack_of,
    )


class _Room:
    """Packs by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self.opened = 0
        self._capacity = capacity
        self._packs: dict[int, deque[Ints]] = {}
        self._remaining: list[int] = []  # the keys, sorted

    def take(self, length: int, count: int) -> tuple[Ints, int]:
        """Some packs with the same room, the smallest that `length` fits in, as many as `count` samples of it need;
        new ones where it fits in none."""
        place = bisect.bisect_left(self._remaining, length)
        if place == len(self._remaining):
            needed = -(-count // (self._capacity // length))
            self.opened += needed
            return np.arange(self.opened - needed, self.opened), self._capacity
        remaining = self._remaining[place]
        waiting = self._packs[remaining]
        packs, needed = waiting.popleft(), -(-count // (remaining // length))
        if len(packs) > needed:
            waiting.appendleft(packs[needed:])
        if not waiting:
            del self._packs[remaining], self._remaining[place]
        return packs[:needed], remaining

    def give(self, packs: Ints, remaining: int) -> None:
        if len(packs) == 0 or remaining == 0:
            return
        if remaining not in self._packs:
            bisect.insort(self._remaining, remaining)
            self._packs[remaining] = deque()
        self._packs[remaining].append(packs)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a plan and the offset of its arrays."""
    try:
        with path.open("rb") as file:
            magic, size = file.read(8), int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 1 << 16))) if magic == MAGIC else None
    except (OSError, ValueError) as error:
        raise _unusable(path, f"cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise _unusable(path, "is not a plan of packs")
    return header, 16 + size


def _unusable(path: Path, why: str, value: Any = None) -> DataError:
    remedy = "plan the packs again"
    return DataError(f"{path} {why}; {remedy}", where=str(path), value=value, allowed=remedy)


def _lengths_sha256(lengths: Ints) -> str:
    return hashlib.sha256(np.ascontiguousarray(lengths, "<i8").data).hexdigest()
