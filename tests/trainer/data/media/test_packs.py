"""Documents with media in windows: what is cut, what is dropped, and packs that one process makes."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from trainer.data.errors import DataError
from trainer.data.media.packs import Packs, cut, open_packs


def pieces_of(lengths: list[int], spans: list[tuple[int, int]], capacity: int) -> tuple[list[list[int]], list[int]]:
    table = np.array(spans, np.int64).reshape(-1, 2)
    pieces, dropped = cut(np.cumsum([0, *lengths]), (table[:, 0], table[:, 1]), capacity)
    return pieces.tolist(), dropped.tolist()


def test_a_long_document_is_cut_between_parts_and_text_alone_where_a_window_ends():
    assert pieces_of([5, 8, 0, 3], [(6, 9)], 8) == ([[0, 5], [5, 8], [13, 3]], [])
    # text 0-4, image 4-8, text 8-9, image 9-14, text 14-30
    assert pieces_of([30], [(4, 8), (9, 14)], 10) == ([[0, 9], [9, 5], [14, 10], [24, 6]], [])
    assert pieces_of([12], [], 5) == ([[0, 5], [5, 5], [10, 2]], [])


def test_a_document_whose_image_does_not_fit_is_dropped_and_no_other():
    assert pieces_of([4, 12, 5], [(5, 14), (17, 20)], 8) == ([[0, 4], [16, 5]], [1])
    assert pieces_of([9], [(0, 9)], 9) == ([[0, 9]], [])


@pytest.mark.parametrize("seed", range(5))
def test_pieces_cover_every_token_once_and_split_no_image(seed):
    random = np.random.default_rng(seed)
    lengths, spans = [], []
    for _ in range(60):
        first = sum(lengths)
        at = first
        for _ in range(int(random.integers(1, 6))):
            at += int(random.integers(0, 20))
            width = int(random.integers(1, 34))
            spans.append((at, at + width))
            at += width
        lengths.append(at - first + int(random.integers(0, 5)))
    starts = np.cumsum([0, *lengths])
    pieces, dropped = pieces_of(lengths, spans, 32)
    kept = [n for n in range(60) if n not in dropped]
    tokens = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in kept])
    np.testing.assert_array_equal(np.concatenate([np.arange(a, a + n) for a, n in pieces]), tokens)
    edges = {a for a, _ in pieces} | {a + n for a, n in pieces}
    assert not any(start < edge < stop for start, stop in spans for edge in edges)
    assert max(n for _, n in pieces) <= 32
    too_wide = {int(np.searchsorted(starts, start, side="right")) - 1 for start, stop in spans if stop - start > 32}
    assert set(dropped) == too_wide


def test_packs_are_made_once_and_again_where_they_are_damaged(tmp_path: Path) -> None:
    made: list[int] = []

    def make(shard: int) -> tuple[np.ndarray, np.ndarray]:
        made.append(shard)
        return np.array([[0, 5], [5, 3], [8, 4], [12, 6]])[shard:], np.array([7] * shard)

    def opened() -> Packs:
        return open_packs(tmp_path, "key", ["a", "b"], make, 8)

    found: list[Packs] = []
    threads = [threading.Thread(target=lambda: found.append(opened())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [0, 1]
    assert [one.counts for one in found] == [[3, 2]] * 4
    packs = found[0]
    assert (packs.dropped, packs.dropped_documents(1).tolist(), packs.total("padding")) == (
        1,
        [7],
        3 * 8 - 18 + 16 - 13,
    )
    every = [packs.pieces(0, pack) for pack in range(3)]
    assert sorted(tuple(piece) for pieces, _ in every for piece in pieces.tolist()) == [(0, 5), (5, 3), (8, 4), (12, 6)]
    for pieces, places in every:
        np.testing.assert_array_equal(places, np.cumsum(pieces[:, 1]) - pieces[:, 1])
    path = tmp_path / "packs" / "key" / "a.pieces"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert opened().counts == [3, 2]
    assert made == [0, 1] * 2
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DataError) as error:
        opened().pieces(0, 0)
    assert error.value.where == str(path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError) as error:
        open_packs(tmp_path / "file", "key", ["a"], make, 8)
    assert (error.value.where, error.value.value) == ("data.cache_dir", str(tmp_path / "file"))
