"""A tour of the ranks' rows: each rank sees the block of every rank in turn and never holds more than two of them.

In step t rank r has the block of rank (r + t) mod W, W the number of ranks, and passes it on to rank r - 1. After W
steps all blocks are home, with what the ranks on the way have written into them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from parallel.world import World


class Block(NamedTuple):
    """The rows of one rank.

    own: True for this rank's. fixed: travel as they are. written: travel with what is added to them here, in place.
    """

    own: bool
    fixed: list[Tensor]
    written: list[Tensor]


class PairRing:
    """The ranks of `world`, each with rows of its own number. Collective: waits for the hosts of all ranks, once."""

    def __init__(self, rows: int, world: World) -> None:
        self.world = world
        self.sizes = world.gather_count(rows)
        self.before, self.total = [0, *accumulate(self.sizes)][world.rank], sum(self.sizes)

    def tour(self, visit: Callable[[Block], None], fixed: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """Call `visit` with the block of every rank, this rank's first; it must not keep the block.

        fixed, written: this rank's rows, dimension 0. At the end `written` has, in place, what all ranks wrote.
        """
        ranks, rank = self.world.size, self.world.rank
        here = Block(True, [tensor.contiguous() for tensor in fixed], list(written))
        for step in range(ranks):
            rows = self.sizes[(rank + step + 1) % ranks]
            last = step == ranks - 1
            coming = None if last else _Transfer(here.fixed, rows, self.world)  # beside the work on this block
            visit(here)
            if ranks == 1:
                return
            changed = _Transfer(here.written, rows, self.world).finish()
            here = Block(False, coming.finish() if coming is not None else [], changed)
        for mine, returned in zip(written, here.written, strict=True):
            mine.copy_(returned)


class _Transfer:
    """Tensors on their way to the rank before, and those of `rows` rows from the rank after; empty ones stay."""

    def __init__(self, outgoing: Sequence[Tensor], rows: int, world: World) -> None:
        group = world.group if world.group is not None else dist.group.WORLD
        to, source = (world.rank - 1) % world.size, (world.rank + 1) % world.size
        self.sent = list(outgoing)  # kept alive
        self.received = [tensor.new_empty(rows, *tensor.shape[1:]) for tensor in outgoing]
        operations = [dist.P2POp(dist.isend, x, group=group, group_peer=to) for x in outgoing if x.numel()]
        operations += [dist.P2POp(dist.irecv, x, group=group, group_peer=source) for x in self.received if x.numel()]
        self.works = dist.batch_isend_irecv(operations) if operations else []

    def finish(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        self.sent = []
        return self.received
