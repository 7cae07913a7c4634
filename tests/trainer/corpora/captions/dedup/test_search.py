"""Near pairs are all pairs within the distance, each once, whatever the spread of the hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.corpora.captions.dedup.hashed import SPREADS, collected, compared_all, hashes
from trainer.corpora.captions.dedup import search
from trainer.corpora.captions.dedup.search import near_pairs


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
    found = hashes(900, spread, seed=1)
    expected = compared_all(found, 4)
    shuffled = np.random.default_rng(0).permutation(found)
    shuffled.tofile(tmp_path / "hashes")
    mapped = np.memmap(tmp_path / "hashes", np.uint64, "r")
    (tmp_path / "scratch").mkdir()
    assert collected(mapped, 4, in_memory=200, scratch=tmp_path / "scratch") == expected
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
