"""The items that a rank computes for others, and the exchange of their rows, with gradients.

Legend: R ranks · items have rows, as an image has patches before a tower and embeddings after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.collectives import start_all_to_all

Grid = tuple[int, int]


class Moves(NamedTuple):
    """The items that one rank sends to each of R ranks and gets from them, itself included.

    sent: numbers of its own items. received: grids of the items that it computes; a rank may get none. as_bytes: all
    ranks' items are bytes, and travel so; otherwise they travel as floats.
    """

    sent: tuple[tuple[int, ...], ...]
    received: tuple[tuple[Grid, ...], ...]
    as_bytes: bool = False

    @staticmethod
    def of(
        rank: int, grids: Sequence[Sequence[Grid]], owners: Sequence[Sequence[int]], as_bytes: bool = False
    ) -> Moves:
        """Those of `rank`. grids, owners: of each rank's items, as of `assign`."""
        sent: list[list[int]] = [[] for _ in grids]
        for number, owner in enumerate(owners[rank]):
            sent[owner].append(number)
        received = [
            tuple(grid for grid, owner in zip(*of_rank, strict=True) if owner == rank)
            for of_rank in zip(grids, owners, strict=True)
        ]
        return Moves(tuple(map(tuple, sent)), tuple(received), as_bytes)


def exchange_rows(x: Tensor, group: dist.ProcessGroup, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """x: rows for rank 0, rank 1, ..., then rows that stay unused -> rows from rank 0, rank 1, ...

    Numbers of rows are known on the host, so nothing waits for the device. In backward the gradients take the way back.
    Collective.
    """
    found: Tensor = _ExchangeRows.apply(x, group, tuple(sent), tuple(received))
    return found


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: dist.ProcessGroup, sent: tuple[int, ...], received: tuple[int, ...]
    ) -> Tensor:
        ctx.group, ctx.sent, ctx.received, ctx.rows = group, sent, received, len(x)
        return start_all_to_all(x[: sum(sent)], group, sent, received).wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        dx = start_all_to_all(grads[0], ctx.group, ctx.received, ctx.sent).wait()
        unused = dx.new_zeros(ctx.rows - len(dx), *dx.shape[1:])
        return torch.cat([dx, unused]) if len(unused) else dx, None, None, None
