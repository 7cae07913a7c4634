"""All pairs of 64-bit hashes within a Hamming distance, without comparing all pairs.

The bits are cut into distance + 1 bands: a pair within the distance is equal in at least one of them (pigeonhole), so
only hashes that share a band are compared. A bucket of a band that is still large is cut again by the bits that its
hashes do not share, and so on: all pairs are found, however unevenly the hashes are spread. (Multi-index hashing:
Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012, section 2.)

Hashes are sorted with the bits of a band moved to the top, so that a bucket is a run of the array. More hashes than
`in_memory` are first spread over a file by their bands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.storage.scratch import ScratchDirectory

Hashes = NDArray[np.uint64]
BITS = 64
IN_MEMORY = 1 << 22  # hashes that are sorted at once: 32 MiB, and about five times that while they are compared
LIGHT = 256  # a bucket up to this size is compared pair by pair
CHUNK = 1 << 15  # hashes compared at once: they and what is made of them fit into the processor's cache


def near_pairs(
    hashes: Hashes, distance: int, *, in_memory: int = IN_MEMORY, scratch: Path | None = None
) -> Iterator[tuple[Hashes, Hashes]]:
    """Yield every pair of hashes within a distance in bits once, as arrays of the smaller and the larger ones.

    hashes: [N] uint64, all different, in any order; a memory-mapped file will do. distance: 2 to 7. scratch: the
    directory for files where N > in_memory (default: the system's), 8 N bytes for each level of large buckets.
    Raises ValueError for other distances; OSError for a full disk.
    """
    if not 2 <= distance <= 7:  # fewer: too many buckets to count; more: a large bucket may have fewer bits than bands
        raise ValueError(f"distance is {distance}; bands are made for 2 to 7 bits")
    yield from _search(hashes, 0, (), _Limits(distance, in_memory, scratch or Path(tempfile.gettempdir())))


@dataclass(frozen=True)
class _Limits:
    distance: int
    in_memory: int
    scratch: Path


@dataclass(frozen=True)
class _Band:
    """Bits [low, low + width) of a word whose `fixed` highest bits the hashes of a bucket share. `up` moves them right
    below those; bits above the band make room."""

    fixed: int
    low: int
    width: int

    def up(self, words: Hashes) -> Hashes:
        above = BITS - self.fixed - self.low - self.width
        if above == 0:
            return words.copy()
        band, over = _ones(self.low, self.width), _ones(self.low + self.width, above)
        stay = _word(~(int(band) | int(over)))
        return (words & stay) | (words & band) << _word(above) | (words & over) >> _word(self.width)

    def down(self, words: Hashes) -> Hashes:
        above = BITS - self.fixed - self.low - self.width
        if above == 0:
            return words
        band, over = _ones(self.low + above, self.width), _ones(self.low, above)
        stay = _word(~(int(band) | int(over)))
        return (words & stay) | (words & band) >> _word(above) | (words & over) << _word(self.width)

    @property
    def mask(self) -> np.uint64:
        return _ones(self.low, self.width)


def _word(value: int) -> np.uint64:
    return np.uint64(value & (1 << BITS) - 1)


def _ones(low: int, width: int) -> np.uint64:
    return _word(((1 << width) - 1) << low)


def _bands(fixed: int, count: int) -> list[_Band]:
    """The free bits in `count` bands, from the top."""
    free = BITS - fixed
    edges = [free - free * number // count for number in range(count + 1)]
    return [_Band(fixed, low, high - low) for high, low in pairwise(edges)]


def _search(
    words: Hashes, fixed: int, unequal: tuple[np.uint64, ...], limits: _Limits
) -> Iterator[tuple[Hashes, Hashes]]:
    """Pairs of words that share their `fixed` highest bits. unequal: masks; a pair that is equal under one of them was
    found in an earlier band."""
    earlier = unequal
    for band in _bands(fixed, limits.distance + 1):
        moved = tuple(band.up(np.array([mask]))[0] for mask in earlier)
        shared = fixed + band.width
        for part in _sorted_parts(words, band, limits):
            for first, second in _compare(part, shared, moved, limits):
                first, second = band.down(first), band.down(second)
                yield (np.minimum(first, second), np.maximum(first, second)) if fixed == 0 else (first, second)
        earlier = (*earlier, band.mask)


def _compare(
    words: Hashes | _Large, shared: int, unequal: tuple[np.uint64, ...], limits: _Limits
) -> Iterator[tuple[Hashes, Hashes]]:
    """Pairs of words of one bucket, for each bucket of a sorted array."""
    if isinstance(words, _Large):
        yield from _search(words.words, shared, unequal, limits)
        return
    top = words >> _word(BITS - shared)
    starts = np.flatnonzero(np.concatenate([[True], top[1:] != top[:-1]]))
    sizes = np.diff(starts, append=len(words))
    small = sizes <= LIGHT
    light = np.repeat(small, sizes)
    for pairs in _light_pairs(words[light], sizes[small], limits.distance):
        yield _kept(*pairs, unequal)
    if not light.all():
        yield from _search(words[~light], shared, unequal, limits)


def _kept(first: Hashes, second: Hashes, unequal: tuple[np.uint64, ...]) -> tuple[Hashes, Hashes]:
    differ = first ^ second
    for mask in unequal:
        new = differ & mask != 0
        first, second, differ = first[new], second[new], differ[new]
    return first, second


def _light_pairs(words: Hashes, sizes: NDArray[np.int64], distance: int) -> Iterator[tuple[Hashes, Hashes]]:
    """Pairs within the distance in each run of an array. sizes: of the runs, at most LIGHT."""
    reach = np.repeat(np.cumsum(sizes), sizes) - np.arange(1, len(words) + 1)  # words behind each in its run
    for start in range(0, len(words), CHUNK):
        here, behind = words[start : start + CHUNK + LIGHT], reach[start : start + CHUNK]
        at = np.arange(len(behind))
        for step in range(1, LIGHT):
            at = at[behind[at] >= step]
            if len(at) == 0:
                break
            first, last = at[0], at[-1] + 1
            if 2 * len(at) > last - first:  # contiguous is faster than by index
                differ = here[first:last] ^ here[first + step : last + step]
                near = np.flatnonzero(np.bitwise_count(differ) <= distance) + first
                near = near[behind[near] >= step]
            else:
                near = at[np.bitwise_count(here[at] ^ here[at + step]) <= distance]
            if len(near):
                yield here[near], here[near + step]


@dataclass(frozen=True)
class _Large:
    """The words of one bucket that is too large to be sorted at once, in a file."""

    words: Hashes


def _sorted_parts(words: Hashes, band: _Band, limits: _Limits) -> Iterator[Hashes | _Large]:
    """The words with a band moved up, in sorted arrays that cut no bucket."""
    if len(words) <= limits.in_memory:
        moved = band.up(np.asarray(words))
        moved.sort()
        yield moved
        return
    step, shift = limits.in_memory // 4, _word(BITS - band.fixed - band.width)
    low = _ones(0, band.width)
    sizes = np.zeros(1 << band.width, np.int64)
    for start in range(0, len(words), step):
        sizes += np.bincount(
            (band.up(words[start : start + step]) >> shift & low).astype(np.int64), minlength=len(sizes)
        )
    part_of, ends = _parts(sizes, limits.in_memory)
    scratch = ScratchDirectory(limits.scratch)
    try:
        file = np.memmap(scratch.path / "words", np.uint64, "w+", shape=(len(words),))
        filled = np.concatenate([[0], ends[:-1]])
        for start in range(0, len(words), step):
            moved = band.up(words[start : start + step])
            parts = part_of[(moved >> shift & low).astype(np.int64)]
            order = np.argsort(parts, kind="stable")
            found, counts = np.unique(parts, return_counts=True)
            for part, piece in zip(found, np.split(moved[order], np.cumsum(counts)[:-1]), strict=True):
                file[filled[part] : filled[part] + len(piece)] = piece
                filled[part] += len(piece)
        for first, end in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
            if end - first > limits.in_memory:
                yield _Large(file[first:end])
            else:
                part_words = np.sort(file[first:end])
                yield part_words
    finally:
        scratch.close()


def _parts(sizes: NDArray[np.int64], in_memory: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Neighbouring buckets in parts of at most `in_memory` words where a bucket is not larger: the part of each bucket,
    and where each part ends."""
    part_of, ends, total, inside = np.zeros(len(sizes), np.int64), [], 0, 0
    for bucket, size in enumerate(sizes.tolist()):
        if inside and inside + size > in_memory:
            ends.append(total)
            inside = 0
        part_of[bucket] = len(ends)
        inside, total = inside + size, total + size
    return part_of, np.array([*ends, total])
