"""A bijection for any size, well mixed, a place at a time."""

import numpy as np
import pytest

from trainer.data.hashing import mix64
from trainer.data.mixture.permutation import permute


def permuted(n: int, key: tuple[int, ...], places: np.ndarray, *, inverse: bool = False) -> np.ndarray:
    return permute(places, np.array([n]), mix64(*key), inverse=inverse)


@pytest.mark.parametrize("n", [*range(1, 66), 100, 255, 256, 257, 1000, 65_535, 65_536, 65_537])
def test_every_place_comes_once(n):
    for key in range(3):
        there = permuted(n, (key, n), np.arange(n))
        assert there.dtype == np.int64
        assert np.array_equal(np.sort(there), np.arange(n))
        assert np.array_equal(permuted(n, (key, n), there, inverse=True), np.arange(n))


@pytest.mark.parametrize("n", [2**31 + 11, 2**33, 5_400_000_000, 2**53 + 5, 2**62 + 3, 2**63 - 1])
def test_a_bijection_of_large_sizes_by_its_inverse(n):
    rng = np.random.default_rng(0)
    edges = [0, 1, n // 2, n - 2, n - 1]
    places = np.unique(np.concatenate([rng.integers(0, n, 50_000), edges, np.arange(1000), n - 1 - np.arange(1000)]))
    there = permuted(n, (5,), places)
    assert 0 <= there.min() <= there.max() < n
    assert len(np.unique(there)) == len(places)
    assert np.array_equal(permuted(n, (5,), there, inverse=True), places)
    assert np.array_equal(permuted(n, (5,), permuted(n, (5,), places, inverse=True)), places)


def chi_square(values: np.ndarray, bins: int) -> float:
    """In standard deviations from what uniform values give."""
    expected = len(values) / bins
    statistic = ((np.bincount(values, minlength=bins) - expected) ** 2 / expected).sum()
    return float((statistic - (bins - 1)) / np.sqrt(2 * (bins - 1)))


@pytest.mark.parametrize("n", [1000, 65_536, 2**31 + 11, 2**33])
def test_neighbours_end_up_anywhere(n):
    """Places in a row: where they go, how far from one another, and their lower digits, all as uniform numbers are."""
    places = np.arange(min(n, 200_000))
    there = np.concatenate([permuted(n, (key,), places) for key in range(200_000 // len(places))])
    bins = 50 if n == 1000 else 64  # of equal size
    assert chi_square((there.astype(object) * bins // n).astype(int), bins) < 5
    apart = (np.diff(there) % n).astype(object) * bins // n
    assert chi_square(apart.astype(int), bins) < 5
    if n > 2**20:
        assert chi_square(there % 61, 61) < 5
        assert chi_square((there[:-1] * 3 + there[1:]) % 61, 61) < 5


@pytest.mark.parametrize("n", [5, 16, 1000])
def test_keys_give_unrelated_orders(n):
    """Each place goes everywhere equally often over the keys, and two keys agree at one place on average."""

    def orders_of(keys: int, places: int) -> np.ndarray:
        hashes = mix64(3, np.arange(keys))
        return permute(np.tile(np.arange(places), keys), np.array([n]), np.repeat(hashes, places)).reshape(keys, places)

    there = orders_of(4000, min(n, 16))
    for place in range(there.shape[1]):
        assert chi_square(there[:, place], n) < 6
    orders = orders_of(400, n)
    assert np.array_equal(orders[7], permuted(n, (3, 7), np.arange(n)))
    same = (orders[:-1] == orders[1:]).sum(axis=1)
    assert abs(same.mean() - 1) < 5 * np.sqrt(1 / 400)


def test_a_permutation_is_these_numbers_everywhere():
    assert permuted(1000, (1, 2), np.arange(5)).tolist() == [419, 98, 39, 913, 353]
    assert permuted(2**33, (1, 2), np.arange(3)).tolist() == [7941186523, 8016296325, 2485635632]


def test_sizes_and_keys_may_differ_in_one_call():
    sizes = np.array([1, 2, 7, 1000, 2**33, 2**63 - 1] * 50)
    keys = np.arange(300, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    places = np.random.default_rng(0).integers(0, sizes)
    together = permute(places, sizes, keys)
    alone = [int(permute(places[i : i + 1], sizes[i : i + 1], keys[i : i + 1])[0]) for i in range(300)]
    assert together.tolist() == alone
    assert np.array_equal(permute(together, sizes, keys, inverse=True), places)
