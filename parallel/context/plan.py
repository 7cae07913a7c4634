"""The plan of ring attention: which keys travel where. Made on the host from the bounds of the documents. No torch.

The ranks form a ring, down (to the next lower rank) and up; a "distance" is a number of hops. Two different pieces
share at most one document, the one in which the earlier piece ends, because all tokens between them belong to it too.
Therefore only the tokens of a piece's last document travel, as far as the last rank that needs them and in the
direction with fewer hops, and the scores of a pair of pieces form one full rectangle. In a sequence of one document all
keys travel down, and those of late pieces only part of the way, because only lower ranks attend to them.

Legend: c ranks · rows: places among a rank's tokens, or in a message.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import NamedTuple

from parallel.context.slices import slices

DIRECTIONS = (-1, 1)  # down, up


class Block(NamedTuple):
    """Every query of rows `q` attends to every key of rows `k`."""

    q: slice
    k: slice


@dataclass(frozen=True)
class Part:
    """The keys of one piece that travel.

    rows: among the rank's tokens. direction: -1 or 1. near, far: distances of the nearest and the farthest rank that
    needs it.
    """

    piece: range
    rows: range
    direction: int
    near: int
    far: int


@dataclass(frozen=True)
class Way:
    """One direction of a hop. All rows are of the message, and a slice without rows is 0 to 0.

    rows: what arrives. onward: what travels on. The gradients of the rows `sum_in` arrive from the rank before, those
    of `sum_onward` go to the next one and those of `home` to their owner. returned: the rows among rank r's own tokens
    whose gradients arrive, from rank r + direction * distance.
    """

    direction: int
    rows: slice
    onward: slice
    sum_in: slice
    sum_onward: slice
    home: slice
    returned: list[range]


@dataclass(frozen=True)
class Hop:
    """The work of rank r with the message of this distance: keys of rank r + distance, which came down, and of rank
    r - distance, which came up. size: its rows."""

    distance: int
    size: int
    ways: list[Way]
    blocks: list[Block]


class RingPlan:
    """The plan of `rank` of `ranks` for documents with these bounds (cu_seqlens on the host)."""

    def __init__(self, bounds: Sequence[int], ranks: int, rank: int) -> None:
        self.bounds, self.ranks, self.rank = bounds, ranks, rank
        self.pieces = [_with_rows(pieces) for pieces in slices("ring", bounds[-1], ranks)]
        self.tokens = sum(len(rows) for _, rows in self.pieces[rank])  # of this rank

    @cached_property
    def lengths(self) -> list[int]:
        """Lengths of the documents that the pieces of this rank cut out; each is attended to causally."""
        inside = []
        for piece, _ in self.pieces[self.rank]:
            first = bisect_right(self.bounds, piece.start)
            last = bisect_right(self.bounds, piece.stop - 1)
            inside += [b - a for a, b in pairwise([piece.start, *self.bounds[first:last], piece.stop])]
        return inside

    @cached_property
    def own_blocks(self) -> list[Block]:
        """Between the two pieces of this rank; rows `k` are among its tokens."""
        keys = [(piece, rows[-self._shared(piece) :]) for piece, rows in self.pieces[self.rank]]
        return self._blocks(keys)

    @cached_property
    def sent(self) -> list[list[range]]:
        """Rows of this rank's own keys that start to travel in each of the directions."""
        return [[part.rows for part in self._parts(self.rank, direction, 1)] for direction in DIRECTIONS]

    @cached_property
    def hops(self) -> list[Hop]:
        """For distances 1 to c - 1."""
        return [self._hop(distance) for distance in range(1, self.ranks)]

    def _hop(self, distance: int) -> Hop:
        ways, keys, size = [], [], 0
        for direction in DIRECTIONS:
            rows: dict[Part, range] = {}
            for part in self._parts((self.rank - direction * distance) % self.ranks, direction, distance):
                rows[part] = range(size, size + len(part.rows))
                size += len(part.rows)
            keys += [(part.piece, of_part) for part, of_part in rows.items()]
            returned = [part.rows for part in self._parts(self.rank, direction, distance) if part.far == distance]
            ways.append(
                Way(
                    direction,
                    rows=_joined(rows, lambda part: True),
                    onward=_joined(rows, lambda part: part.far > distance),
                    sum_in=_joined(rows, lambda part: part.near < distance),
                    sum_onward=_joined(rows, lambda part: part.near <= distance < part.far),
                    home=_joined(rows, lambda part: part.far == distance),
                    returned=returned,
                )
            )
        return Hop(distance, size, ways, self._blocks(keys))

    def _parts(self, owner: int, direction: int, distance: int) -> list[Part]:
        """The keys of `owner` that travel in this direction to this distance at least."""
        return [part for part in self._all_parts[owner] if part.direction == direction and part.far >= distance]

    @cached_property
    def _all_parts(self) -> list[list[Part]]:
        parts: list[list[Part]] = []
        for owner, pieces in enumerate(self.pieces):
            parts.append([])
            for piece, rows in pieces:
                users = [
                    other
                    for other, queries in enumerate(self.pieces)
                    if other != owner and any(self._queries(query, piece) for query, _ in queries)
                ]
                if users:
                    hops = {way: [way * (user - owner) % self.ranks for user in users] for way in DIRECTIONS}
                    way = min(DIRECTIONS, key=lambda way: max(hops[way]))
                    travels = rows[-self._shared(piece) :]
                    parts[-1].append(Part(piece, travels, way, min(hops[way]), max(hops[way])))
        return parts

    def _shared(self, piece: range) -> int:
        """Number of positions of the piece that are in the same document as its last one."""
        return piece.stop - max(piece.start, self.bounds[bisect_right(self.bounds, piece.stop - 1) - 1])

    def _queries(self, query: range, key: range) -> int:
        """Number of positions of the piece `query`, from its start, that attend to the earlier piece `key`."""
        if key.start >= query.start:
            return 0
        end = self.bounds[bisect_right(self.bounds, key.stop - 1)]
        return max(0, min(end, query.stop) - query.start)

    def _blocks(self, keys: Sequence[tuple[range, range]]) -> list[Block]:
        """Blocks of this rank's queries with pieces of keys, given with their rows; neighbours with equal sides are
        joined."""
        blocks: list[Block] = []
        for (key, k), (query, q) in product(keys, self.pieces[self.rank]):
            if count := self._queries(query, key):
                block = Block(slice(q.start, q.start + count), slice(k.start, k.stop))
                before = blocks[-1] if blocks else None
                if before and before.k == block.k and before.q.stop == block.q.start:
                    blocks[-1] = Block(slice(before.q.start, block.q.stop), block.k)
                elif before and before.q == block.q and before.k.stop == block.k.start:
                    blocks[-1] = Block(block.q, slice(before.k.start, block.k.stop))
                else:
                    blocks.append(block)
        return blocks


def _with_rows(pieces: list[range]) -> list[tuple[range, range]]:
    """Each piece with its rows among the rank's tokens."""
    starts = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
    return [(piece, range(start, start + len(piece))) for piece, start in zip(pieces, starts, strict=True)]


def _joined(rows: dict[Part, range], keep: Callable[[Part], bool]) -> slice:
    """The rows of the parts to keep, which are neighbours, as a rank has two at most."""
    kept = [of_part for part, of_part in rows.items() if keep(part)]
    return slice(kept[0].start, kept[-1].stop) if kept else slice(0, 0)
