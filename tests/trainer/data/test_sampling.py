import numpy as np
import pytest

from trainer.data.errors import DataError
from trainer.data.hashing import mix64, text_key
from trainer.data.sampling import Sampler
from trainer.mixture import BLOCK, quotas

WINDOWS = {"a": 7, "b": 300, "c": 11}
WEIGHTS = {"a": 1.0, "b": 5.0, "c": 0.4}


def lookup(sampler: Sampler, first: int, count: int) -> list[tuple[int, int]]:
    return list(zip(*(x.tolist() for x in sampler.lookup(np.arange(first, first + count))), strict=True))


def test_hashes_are_these_numbers_everywhere() -> None:
    assert mix64(0).tolist() == [9370218965779684112]
    assert mix64(1, np.arange(2)).tolist() == [1044308461738574045, 10333433994700725426]
    assert mix64(1, 2).tolist() != mix64(2, 1).tolist()
    assert mix64(-1).tolist() == mix64(2**64 - 1).tolist()
    assert text_key("a", "b") == 18429100309458631331


def test_sources_are_mixed_by_weight_in_every_block_and_in_short_stretches() -> None:
    sampler = Sampler(WEIGHTS, WINDOWS, seed=3)
    shares = quotas(list(WEIGHTS.values()))
    for block in range(3):
        sources = [source for source, _ in lookup(sampler, block * BLOCK, BLOCK)]
        assert [sources.count(s) for s in range(3)] == shares
        for first in range(0, BLOCK - 64, 64):
            some = sources[first : first + 64]
            assert all(abs(some.count(s) - 64 * shares[s] / BLOCK) < 2 for s in range(3))


def test_every_window_comes_once_per_epoch_in_an_order_of_its_own() -> None:
    sampler = Sampler(WEIGHTS, WINDOWS, seed=3)
    drawn: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for source, window in lookup(sampler, 0, 3 * BLOCK):
        drawn[source].append(window)
    for source, size in enumerate(WINDOWS.values()):
        epochs = [drawn[source][i : i + size] for i in range(0, len(drawn[source]) - size + 1, size)]
        assert len(epochs) >= 2
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_a_sample_does_not_depend_on_what_was_asked_before_or_with_it() -> None:
    whole = lookup(Sampler(WEIGHTS, WINDOWS, seed=3), 0, 4000)
    for world in (1, 2, 3, 5):
        sampler = Sampler(WEIGHTS, WINDOWS, seed=3)
        pieces = [lookup(sampler, first, min(world * 7, 4000 - first)) for first in range(0, 4000, world * 7)]
        assert [sample for piece in pieces for sample in piece] == whole
    assert lookup(Sampler(WEIGHTS, WINDOWS, seed=3), 3999, 1) == whole[-1:]
    assert lookup(Sampler(WEIGHTS, WINDOWS, seed=4), 0, 4000) != whole
    far = 10**9
    sampler = Sampler(WEIGHTS, WINDOWS, seed=3)
    assert lookup(sampler, far, 8) == [pair for n in range(far, far + 8) for pair in lookup(sampler, n, 1)]


def test_a_weight_too_small_to_count_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.weights\.c=1e-05"):
        Sampler({"a": 1.0, "c": 1e-5}, WINDOWS, seed=0)
