"""Seeded permutations of range(n) for any n, computed place by place: nothing is stored that grows with n.

A Feistel network permutes the cells of a table of about sqrt(n) x sqrt(n), a number being a row and a column that are
moved on in turns, each by a hash of the other. The table has n cells and less than a column more; a number that lands
there goes through again until it lands below n ("cycle walking": Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.data.hashing import U64

Ints = npt.NDArray[np.int64]

ROUNDS = 6
ONE, HALF = np.uint64(1), np.uint64(32)
# Rounds of one permutation, and permutations with keys of their own, hash with counters far apart.
ROUND_KEYS = np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permute(places: Ints, sizes: Ints, keys: U64, *, inverse: bool = False) -> Ints:
    """places [N], each in a permutation of its own: of range(sizes) [N] or [1], with keys [N] or [1], which are uniform
    hashes. Each place must be below its size, which is not checked."""
    limits = sizes.astype(np.uint64)
    columns = np.rint(np.sqrt(sizes)).astype(np.uint64)  # inexact for large sizes, which matters to no one
    rows = (limits + columns - ONE) // columns
    numbers = _rounds(places.astype(np.uint64), rows, columns, keys, inverse)
    outside = np.flatnonzero(numbers >= limits)
    while outside.size:
        rows_o, columns_o, limits_o, keys_o = (_at(values, outside) for values in (rows, columns, limits, keys))
        again = _rounds(numbers[outside], rows_o, columns_o, keys_o, inverse)
        numbers[outside] = again
        outside = outside[again >= limits_o]
    return numbers.astype(np.int64)


def _at(values: U64, places: npt.NDArray[np.intp]) -> U64:
    return values if len(values) == 1 else values[places]


def _rounds(numbers: U64, rows: U64, columns: U64, keys: U64, inverse: bool) -> U64:
    """The network on the cells of tables of rows x columns, at most 2**32 each, cells counted along the rows."""
    row = numbers // columns
    halves, sides = [row, numbers - row * columns], [rows, columns]
    for number in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
        to, by = number % 2, 1 - number % 2
        hashed = halves[by] + (keys + ROUND_KEYS[number])
        hashed *= MULTIPLIERS[0]
        hashed ^= hashed >> HALF
        hashed *= MULTIPLIERS[1]
        hashed >>= HALF
        hashed *= sides[to]
        hashed >>= HALF  # uniform below the side
        moved = halves[to] + (sides[to] - hashed if inverse else hashed)
        halves[to] = np.where(moved >= sides[to], moved - sides[to], moved)
    return halves[0] * columns + halves[1]
