"""Items of several ranks divided so that all ranks have about as much to do. No torch here.

Legend: R ranks · N items of all ranks.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

ENOUGH = 1.01  # largest over mean load at which no further item moves
NEAR = 8  # ranks with the lowest loads, among which one gives items of a rank with too many
ROUNDS = 4  # moves and swaps at the end, for each rank

Item = tuple[int, int, int]  # size, the rank that has it, its number there


class _Found(NamedTuple):
    owners: list[list[int]]
    largest: int  # load of a rank


def assign(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rank that each item goes to; items are whole, and stay where they are if that leaves loads even.

    The same sizes give the same result everywhere. The largest load is at most `ENOUGH` times the mean, or the size of
    the largest item, where a few moves reach that: there are items for which no division does.

    Args: sizes: positive; of each rank's items. Takes O(N log R + R log N).
    """
    loads = [sum(of_rank) for of_rank in sizes]
    total, ranks = sum(loads), len(sizes)
    limit = max(-(-total // ranks), int(ENOUGH * total / ranks), max(max(some, default=0) for some in sizes))
    if max(loads) <= limit:
        return [[rank] * len(of_rank) for rank, of_rank in enumerate(sizes)]
    near = _even_out(sizes, _fill(sizes, total // ranks), limit)
    if near.largest <= limit:
        return near.owners
    return min(near, _even_out(sizes, _fill(sizes, 0), limit), key=lambda found: found.largest).owners


def _fill(sizes: Sequence[Sequence[int]], keep: int) -> list[list[int]]:
    """Largest items first, each to its own rank while that has at most `keep` with it, or else to the rank with the
    least."""
    items = sorted((-size, rank, number) for rank, of_rank in enumerate(sizes) for number, size in enumerate(of_rank))
    owners, loads = [[0] * len(of_rank) for of_rank in sizes], [0] * len(sizes)
    least = [(0, rank) for rank in range(len(sizes))]
    for minus, home, number in items:
        if loads[home] - minus <= keep:
            rank = home
        else:
            while least[0][0] != loads[least[0][1]]:  # it has got an item since
                heapq.heapreplace(least, (loads[least[0][1]], least[0][1]))
            rank = least[0][1]
        owners[home][number] = rank
        loads[rank] -= minus
    return owners


def _even_out(sizes: Sequence[Sequence[int]], owners: list[list[int]], limit: int) -> _Found:
    """`owners` after moves and swaps between ranks over the limit and those with the least."""
    held: list[list[Item]] = [[] for _ in sizes]  # ascending
    for home, of_rank in enumerate(owners):
        for number, rank in enumerate(of_rank):
            held[rank].append((sizes[home][number], home, number))
    loads = [sum(size for size, _, _ in items) for items in held]
    for items in held:
        items.sort()
    for _ in range(ROUNDS * len(sizes)):
        giver = max(range(len(sizes)), key=loads.__getitem__)
        if loads[giver] <= limit:
            break
        best = None
        for taker in heapq.nsmallest(NEAR, range(len(sizes)), key=loads.__getitem__):
            change = _closest(held[giver], held[taker], (loads[giver] - loads[taker]) // 2)
            if change is not None:
                size, given, taken = change
                largest = max(loads[giver] - size, loads[taker] + size)
                if largest < loads[giver] and (best is None or largest < best[0]):
                    best = largest, taker, size, given, taken
        if best is None:
            break
        _, taker, size, given, taken = best
        for item, source, target in ((given, giver, taker), (taken, taker, giver)):
            if item is not None:
                held[source].remove(item)
                held[target].insert(bisect_left(held[target], item), item)
        loads[giver] -= size
        loads[taker] += size
    for rank, items in enumerate(held):
        for _, home, number in items:
            owners[home][number] = rank
    return _Found(owners, max(loads))


def _closest(given: Sequence[Item], taken: Sequence[Item], goal: int) -> tuple[int, Item, Item | None] | None:
    """An item to give, and one to take for it or None, whose sizes differ by about `goal`; with the difference."""
    best: tuple[int, Item, Item | None] | None = None
    for item in given:
        at = bisect_left(taken, (item[0] - goal,))
        for other in (None, *taken[max(0, at - 1) : at + 1]):
            size = item[0] - (other[0] if other else 0)
            if size > 0 and (best is None or abs(size - goal) < abs(best[0] - goal)):
                best = size, item, other
    return best
