"""Near pairs are all pairs within the distance, each once, whatever the spread of the hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.corpora.captions.dedup import search
from trainer.corpora.captions.dedup.search import near_pairs

Hashes = NDArray[np.uint64]
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


def collected(found: Hashes, distance: int, in_memory: int = search.IN_MEMORY, scratch: Path | None = None) -> Pairs:
    pairs = [
        pair
        for first, second in near_pairs(found, distance, in_memory=in_memory, scratch=scratch)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("distance", [2, 4])
def test_pairs_are_those_of_comparing_all(spread: str, distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = hashes(800, spread)
    expected = compared_all(found, distance)
    assert expected
    assert collected(found, distance) == expected
    monkeypatch.setattr(search, "LIGHT", 32)  # buckets are cut again and again
    monkeypatch.setattr(search, "CHUNK", 64)
    assert collected(found, distance) == expected


@pytest.mark.parametrize("spread", SPREADS)
def test_pairs_do_not_depend_on_memory_or_order(spread: str, tmp_path: Path) -> None:
    found = hashes(1500, spread, seed=1)
    expected = compared_all(found, 4)
    shuffled = np.random.default_rng(0).permutation(found)
    shuffled.tofile(tmp_path / "hashes")
    mapped = np.memmap(tmp_path / "hashes", np.uint64, "r")
    (tmp_path / "scratch").mkdir()
    assert collected(mapped, 4, in_memory=300, scratch=tmp_path / "scratch") == expected
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("spread", SPREADS[:2])
def test_all_pairs_of_ten_thousand(spread: str) -> None:
    found = hashes(10_000, spread)
    assert collected(found, 4) == compared_all(found, 4)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_hashes(count: int) -> None:
    found = np.arange(count, dtype=np.uint64)
    assert collected(found, 4) == compared_all(found, 4)


@pytest.mark.parametrize("distance", [-1, 1, 8])
def test_other_distances_are_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=str(distance)):
        list(near_pairs(np.arange(2, dtype=np.uint64), distance))
