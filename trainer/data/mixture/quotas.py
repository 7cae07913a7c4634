"""Samples of every block that each source gets: whole numbers that never drift from the weights.

In a block of L samples source s is due L * w_s / W of them. It gets the whole part, and one more in as many blocks as
its remainder says. Which sources get one more in block b is decided by systematic sampling: lay the remainders end to
end, as a ruler of whole length, and put marks at u_b, u_b + 1, u_b + 2, ... on it. At most one mark falls to a source,
and it is hit as often as its remainder is long if the offsets u_b fill [0, 1) evenly. They do: u_b = (b * g mod W) / W
takes every multiple of 1 / W once in W blocks, and any stretch of blocks is about as even (`even_step`). How often a
source was hit before block b is then a sum of floors along an arithmetic progression, in as many steps as W has digits:
nothing is counted up and nothing stored. All of it is in whole numbers of any size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

GOLDEN = (math.sqrt(5) - 1) / 2


class Quotas:
    """The quotas of one phase. weights: whole numbers, one a source, sum above 0. block: samples of a full block."""

    def __init__(self, weights: Sequence[int], block: int) -> None:
        self._weights, self._total, self._block = list(weights), sum(weights), block
        self._step = even_step(self._total)

    def counts(self, block: int, length: int | None = None) -> list[int]:
        """Samples of each source in a block, which has `length` in all (None: a full one): its due, rounded up or
        down."""
        length = self._block if length is None else length
        mark = block * self._step % self._total
        hits = [-((mark - end) // self._total) for end in self._ends(length)]
        extra = [hits_to - hits_from for hits_from, hits_to in zip([0, *hits], hits, strict=False)]
        return [length * weight // self._total + one for weight, one in zip(self._weights, extra, strict=True)]

    def before(self, block: int) -> list[int]:
        """Samples of each source in the full blocks 0 .. block - 1."""
        rounds, rest = divmod(block, self._total)
        g, W = self._step, self._total
        wraps = floor_sum(rest, W, g, 0)
        hits = []
        for end in self._ends(self._block):
            # ceil((end - (j g mod W)) / W), summed over j < rest, from the last j to the first
            partial = floor_sum(rest, W, g, end + W - 1 - (rest - 1) * g) + wraps
            hits.append(rounds * end + partial)
        extra = [hits_to - hits_from for hits_from, hits_to in zip([0, *hits], hits, strict=False)]
        return [block * (self._block * w // W) + more for w, more in zip(self._weights, extra, strict=True)]

    def _ends(self, length: int) -> list[int]:
        """The end of each source's remainder on the ruler, in units of 1 / W."""
        return list(accumulate(length * weight % self._total for weight in self._weights))


@functools.cache
def even_step(total: int) -> int:
    """A step that visits all residues of `total`, any stretch of them evenly spread: of those near the golden ratio the
    one whose largest partial quotient is smallest, which bounds the unevenness."""
    near = round(total * GOLDEN)
    coprime = [step for step in range(max(near - 50, 1), near + 51) if math.gcd(step, total) == 1]
    return min(coprime, key=lambda step: (largest_quotient(step, total), abs(step - near)))


def largest_quotient(a: int, b: int) -> int:
    """The largest partial quotient of the continued fraction of a / b."""
    largest = 0
    while a:
        largest = max(largest, b // a)
        a, b = b % a, a
    return largest


def deal(counts: Sequence[int], parts: int) -> npt.NDArray[np.int64]:
    """[parts, S] of a block's counts [S] in `parts` stretches, by the same marks: each is an equal share, rounded up or
    down, and their sums over the stretches are exact. Stretches differ in length by one sample at most."""
    share, rest = np.divmod(np.array(counts, np.int64), parts)
    marks = np.arange(parts)[:, None] * even_step(parts) % parts
    hits = -((marks - np.cumsum(rest)) // parts)
    return share + np.diff(hits, axis=1, prepend=0)


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Sum of floor((a * i + b) / m) over i = 0 .. n - 1, in O(log m) steps (as Euclid's algorithm)."""
    total = 0
    while n > 0:
        total += (n - 1) * n // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        # columns under a line become rows: count the points by the other coordinate
        highest = a * n + b
        if highest < m:
            break
        n, b, m, a = highest // m, highest % m, a, m
    return total
