"""Dispatch whose numbers of rows are given instead of computed, for simulated ranks: fake tensors have no values.

Legend: T tokens on each rank · K experts per token · E experts · R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch.distributed as dist

from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.dispatch.base import RowOrder


class KnownOrder(RowOrder):
    """`order` with the end of each expert's rows known on the host. shares: of each expert, in proportion to which the
    rows are divided."""

    def __init__(self, order: RowOrder, shares: Sequence[int]) -> None:
        super().__init__(order.ids, order.num_experts, by_slot=order.by_slot)
        self._shares = shares

    def ends(self) -> list[int]:
        rows, total = self.ids.numel(), max(1, sum(self._shares))
        return [rows * share // total for share in accumulate(self._shares)]


class KnownAllToAll(AllToAllDispatch):
    """`AllToAllDispatch` of the rank whose tokens and experts have these rows.

    counts: for each rank of the group, the rows of its T tokens for each of the E experts: T * K in all.
    """

    def __init__(self, group: dist.ProcessGroup, counts: Sequence[Sequence[int]]) -> None:
        super().__init__(group)
        self.counts = counts

    def _count_rows(self, order: RowOrder, per_rank: int) -> tuple[list[int], list[int]]:
        self._exchange_counts(order, per_rank)  # for its bytes
        rank, ranks = self.group.rank(), self.group.size()
        sent = [_rows(self.counts[rank], other, per_rank) for other in range(ranks)]
        return sent, [_rows(self.counts[other], rank, per_rank) for other in range(ranks)]


def _rows(counts: Sequence[int], rank: int, per_rank: int) -> int:
    return sum(counts[rank * per_rank : (rank + 1) * per_rank])


def rows_of_experts(counts: Sequence[Sequence[int]], experts: slice) -> list[int]:
    """The rows of the tokens of all ranks for each of `experts`. counts: as for `KnownAllToAll`."""
    return [sum(of_rank) for of_rank in zip(*(of_rank[experts] for of_rank in counts), strict=True)]
