"""Items of several ranks divided so that all ranks have about as much to do. No torch here.

Sizes come first: where they allow it, all ranks have about the same. Within that, items are exchanged for several
smaller ones, so that costs, which may grow faster than sizes, are as even as they can be.

Legend: R ranks · N items of all ranks.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

ENOUGH = 1.01  # largest over mean load at which no further item moves for the sake of sizes
MOST = 1.04  # largest over mean load that costs may lead to
NEAR = 4  # ranks with the lowest loads, among which one takes items of the rank with the highest
ROUNDS = 4  # moves and swaps of sizes, for each rank
COST_ROUNDS = 64  # exchanges for the sake of costs, in all: they are searched the longest

Item = tuple[int, int, int]  # size, the rank that has it, its number there
Numbers = Sequence[Sequence[int]]  # a number for each item of each rank


def assign(sizes: Numbers, costs: Numbers | None = None) -> list[list[int]]:
    """The rank that each item goes to; items are whole, and stay where they are as far as loads permit.

    The same arguments give the same result everywhere. The largest sum of sizes is at most `MOST` times the mean, or
    the size of the largest item, wherever a few moves and swaps reach that: there are items for which no division does.

    Args: sizes: positive. costs: what becomes even as far as sizes permit; larger items cost at least as much for their
    size as smaller ones. None: sizes alone.
    """
    total, ranks = sum(map(sum, sizes)), len(sizes)
    largest = max(max(of_rank, default=0) for of_rank in sizes)
    limit = max(-(-total // ranks), int(ENOUGH * total / ranks), largest)
    held = _hold(sizes, [[rank] * len(of_rank) for rank, of_rank in enumerate(sizes)])
    if _most(held) > limit:
        held = _even_out(_hold(sizes, _fill(sizes, total // ranks)), limit)
        if _most(held) > limit:
            held = min(held, _even_out(_hold(sizes, _fill(sizes, 0)), limit), key=_most)
    if costs is not None:
        _even_costs(held, costs, max(_most(held), int(MOST * total / ranks)))
    owners = [[0] * len(of_rank) for of_rank in sizes]
    for rank, items in enumerate(held):
        for _, home, number in items:
            owners[home][number] = rank
    return owners


def loads(numbers: Numbers, owners: Numbers) -> list[int]:
    """The sum of the items' numbers on each rank."""
    found = [0] * len(numbers)
    for of_rank, ranks in zip(numbers, owners, strict=True):
        for number, rank in zip(of_rank, ranks, strict=True):
            found[rank] += number
    return found


def _hold(sizes: Numbers, owners: Numbers) -> list[list[Item]]:
    """The items of each rank, ascending."""
    held: list[list[Item]] = [[] for _ in sizes]
    for home, of_rank in enumerate(owners):
        for number, rank in enumerate(of_rank):
            held[rank].append((sizes[home][number], home, number))
    return [sorted(items) for items in held]


def _load(items: Sequence[Item]) -> int:
    return sum(size for size, _, _ in items)


def _most(held: Sequence[Sequence[Item]]) -> int:
    return max(map(_load, held))


def _fill(sizes: Numbers, keep: int) -> list[list[int]]:
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


class _Change(NamedTuple):
    """Items that a rank gives to a taker, and takes from it. largest: the higher of their two loads afterwards."""

    largest: float
    taker: int
    given: list[Item]
    taken: list[Item]

    def apply(self, held: list[list[Item]], giver: int) -> None:
        for items, source, target in ((self.given, giver, self.taker), (self.taken, self.taker, giver)):
            held[source] = [item for item in held[source] if item not in items]
            held[target] = sorted([*held[target], *items])


def _even_out(held: list[list[Item]], limit: int) -> list[list[Item]]:
    """The same items after moves and swaps between ranks over the limit and those with the least."""
    of_ranks = [_load(items) for items in held]
    for _ in range(ROUNDS * len(held)):
        giver = max(range(len(held)), key=of_ranks.__getitem__)
        if of_ranks[giver] <= limit:
            break
        changes: list[_Change] = []
        for taker in heapq.nsmallest(NEAR, range(len(held)), key=of_ranks.__getitem__):
            pair = _closest(held[giver], held[taker], (of_ranks[giver] - of_ranks[taker]) // 2)
            if pair is not None:
                size = _load(pair[0]) - _load(pair[1])
                changes.append(_Change(max(of_ranks[giver] - size, of_ranks[taker] + size), taker, *pair))
        best = min(changes, key=lambda change: change.largest, default=None)
        if best is None or best.largest >= of_ranks[giver]:
            break
        best.apply(held, giver)
        of_ranks[giver], of_ranks[best.taker] = _load(held[giver]), _load(held[best.taker])
    return held


def _closest(given: Sequence[Item], taken: Sequence[Item], goal: int) -> tuple[list[Item], list[Item]] | None:
    """An item to give, and at most one to take for it, whose sizes differ by about `goal`."""
    best: tuple[int, list[Item], list[Item]] | None = None
    for item in given:
        at = bisect_left(taken, (item[0] - goal,))
        for others in ([], *([other] for other in taken[max(0, at - 1) : at + 1])):
            size = item[0] - _load(others)
            if size > 0 and (best is None or abs(size - goal) < best[0]):
                best = abs(size - goal), [item], others
    return best and best[1:]


def _even_costs(held: list[list[Item]], costs: Numbers, limit: int) -> None:
    """Lower the highest cost of a rank, while no rank has more than `limit`."""
    of_ranks = [_cost(items, costs) for items in held]
    largest = max((costs[home][number] for items in held for _, home, number in items), default=0)
    goal = max(ENOUGH * sum(of_ranks) / len(held), largest)
    for _ in range(COST_ROUNDS):
        giver = max(range(len(held)), key=of_ranks.__getitem__)
        if of_ranks[giver] <= goal:
            break
        changes: list[_Change] = []
        for taker in heapq.nsmallest(NEAR, range(len(held)), key=of_ranks.__getitem__):
            change = _exchange(held, giver, taker, costs, limit)
            if change is not None:
                changes.append(change)
        best = min(changes, key=lambda change: change.largest, default=None)
        if best is None or best.largest >= of_ranks[giver]:
            break
        best.apply(held, giver)
        of_ranks[giver], of_ranks[best.taker] = _cost(held[giver], costs), _cost(held[best.taker], costs)


def _cost(items: Sequence[Item], costs: Numbers) -> int:
    return sum(costs[home][number] for _, home, number in items)


def _exchange(held: Sequence[Sequence[Item]], giver: int, taker: int, costs: Numbers, limit: int) -> _Change | None:
    """The item for neighbours in size after which the higher cost of two ranks is the lowest, and neither has more than
    `limit`."""
    given, taken = held[giver], held[taker]
    sizes = [0, *accumulate(size for size, _, _ in taken)]
    spent = [0, *accumulate(costs[home][number] for _, home, number in taken)]
    room, spare = limit - sizes[-1], limit - _load(given)
    cost = _cost(given, costs)
    half = (cost - spent[-1]) / 2
    best: tuple[float, Item, int, int] | None = None
    for item in given:
        own = costs[item[1]][item[2]] - half
        for first in range(len(sizes)):
            least, most = sizes[first] + max(item[0] - room, 0), sizes[first] + item[0] + spare
            for last in range(bisect_left(sizes, least, first), bisect_right(sizes, most, first)):
                miss = abs(own - (spent[last] - spent[first]))
                if best is None or miss < best[0]:
                    best = miss, item, first, last
    if best is None:
        return None
    miss, item, first, last = best
    return _Change(cost - half + miss, taker, [item], list(taken[first:last]))
