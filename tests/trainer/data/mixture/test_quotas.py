"""Quotas of blocks, against the definition in fractions and against counting up."""

from fractions import Fraction

import numpy as np
import pytest

from trainer.data.mixture.quotas import Quotas, deal, floor_sum

BLOCK = 65_536
# The default mixture's, thirds, one rare source, prime sums, one source, and more than int64 holds.
WEIGHTS = [
    [270, 330, 2400, 300, 30, 1500, 600, 420, 150],
    [1, 1, 1],
    [1, 10**9],
    [3, 7, 0, 999_983],
    [54_321, 1],
    [7],
    [1, 65_536, 65_537, 2**80 + 1, 3**50],
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_every_block_is_within_one_sample_of_each_quota_and_nothing_drifts(weights):
    quotas, total = Quotas(weights, BLOCK), sum(weights)
    counted = [0] * len(weights)
    worst = Fraction(0)
    for block in range(3000):
        if block % 7 == 0 or block < 100:
            assert quotas.before(block) == counted
        counts = quotas.counts(block)
        assert sum(counts) == BLOCK
        assert all(abs(count - Fraction(BLOCK * w, total)) < 1 for count, w in zip(counts, weights, strict=True))
        counted = [a + b for a, b in zip(counted, counts, strict=True)]
        worst = max(
            worst, *(abs(c - Fraction((block + 1) * BLOCK * w, total)) for c, w in zip(counted, weights, strict=True))
        )
    assert worst < 4


@pytest.mark.parametrize("weights", WEIGHTS[:5], ids=str)
def test_far_blocks_have_not_drifted_either(weights):
    quotas, total = Quotas(weights, BLOCK), sum(weights)
    for block in (10**6 - 1, 10**9, 2**46, 2**47 - 2):
        before = quotas.before(block)
        assert sum(before) == block * BLOCK
        assert [b - a for a, b in zip(before, quotas.before(block + 1), strict=True)] == quotas.counts(block)
        dues = [Fraction(block * BLOCK * weight, total) for weight in weights]
        assert all(abs(b - due) < 8 for b, due in zip(before, dues, strict=True))


@pytest.mark.parametrize("length", [0, 1, 2, 1000, 65_535])
def test_a_short_block_has_quotas_of_its_own(length):
    for weights in WEIGHTS:
        for block in (0, 1, 12345):
            counts = Quotas(weights, BLOCK).counts(block, length)
            assert sum(counts) == length
            dues = [Fraction(length * weight, sum(weights)) for weight in weights]
            assert all(abs(count - due) < 1 for count, due in zip(counts, dues, strict=True))


def test_after_as_many_blocks_as_the_weights_sum_every_count_is_exact():
    weights = [3, 5, 13]
    assert Quotas(weights, BLOCK).before(21 * 11) == [21 * 11 * BLOCK * w // 21 for w in weights]


def test_floor_sum_against_a_loop():
    for n, m, a, b in [
        (0, 5, 3, 2),
        (1, 1, 0, 0),
        (10, 7, 3, 2),
        (100, 13, 40, -5),
        (57, 1000, 617, -999),
        (9, 3, 2, 10),
    ]:
        assert floor_sum(n, m, a, b) == sum((a * i + b) // m for i in range(n))


@pytest.mark.parametrize(
    ("counts", "parts"),
    [([2949, 3604, 26_215, 3277, 328, 16_384, 6554, 4587, 1638], 256), ([7, 0, 93], 1), ([300, 1, 211], 2), ([1], 1)],
)
def test_a_block_is_dealt_evenly_to_its_stretches(counts, parts):
    dealt = deal(counts, parts)
    assert dealt.sum(axis=0).tolist() == counts
    assert (dealt >= 0).all()
    assert all(
        abs(Fraction(int(n)) - Fraction(c, parts)) < 1 for row in dealt for n, c in zip(row, counts, strict=True)
    )
    lengths = dealt.sum(axis=1)
    assert lengths.max() - lengths.min() <= 1
    so_far = np.cumsum(dealt, axis=0) - np.outer(np.arange(1, parts + 1), counts) / parts
    assert abs(so_far).max() < 4
