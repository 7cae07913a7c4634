"""Hashes for tests of the search, and their pairs by comparing all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.corpora.captions.dedup.search import IN_MEMORY, Hashes, near_pairs

Pairs = set[tuple[int, int]]
SPREADS = ("even", "few bits vary", "around one")


def hashes(count: int, spread: str, seed: int = 0) -> Hashes:
    """Different hashes, a quarter of them within 4 bits of others."""
    random = np.random.default_rng(seed)
    found = random.integers(0, 2**64, count, dtype=np.uint64)
    if spread == "few bits vary":  # 32 of 64, as in hashes of similar pictures
        found &= np.uint64(0x00FF00FF0F0F3333)
    elif spread == "around one":
        found[:] = flipped(found[:1].repeat(count), 6, random)
    found[-(count // 4) :] = flipped(found[: count // 4], 4, random)
    return np.unique(found)


def flipped(found: Hashes, bits: int, random: np.random.Generator) -> Hashes:
    for _ in range(bits):
        found = found ^ (np.uint64(1) << random.integers(0, 64, len(found)).astype(np.uint64))
    return found


def compared_all(found: Hashes, distance: int) -> Pairs:
    pairs: Pairs = set()
    for place, one in enumerate(found):
        near = np.flatnonzero(np.bitwise_count(found[place + 1 :] ^ one) <= distance) + place + 1
        pairs |= {(int(one), int(found[other])) for other in near}  # np.unique sorted them
    return pairs


def collected(found: Hashes, distance: int, in_memory: int = IN_MEMORY, scratch: Path | None = None) -> Pairs:
    pairs = [
        pair
        for first, second in near_pairs(found, distance, in_memory=in_memory, scratch=scratch)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)
