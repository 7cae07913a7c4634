"""The general expert parallelism: any router groups, any number of experts per token, any cut of the experts.

Each (token, slot) row is sent to the rank that holds its expert, so the numbers of rows have to be exchanged first and
the host waits for them. Weights and expert ids travel with the rows: three collectives forward, two backward.

Legend: T tokens on this rank · K experts per token · R = T*K rows sent · Q rows received · E experts · H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.base import RowOrder, RunExperts, sum_slots
from parallel.dispatch.collectives import begin_all_to_all, carry, unpack


class AllToAllDispatch:
    """Dispatcher for E experts cut into contiguous equal parts over the ranks of `group`; they may differ in T."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: RunExperts) -> Tensor:
        """As `Dispatcher`; `num_experts` must be a multiple of the group's size. Waits for the device once."""
        per_rank = num_experts // self.group.size()
        # Sorted by expert the rows are sorted by rank too.
        order = RowOrder(ids, num_experts)
        ends = order.offsets[per_rank - 1 :: per_rank]
        sent = ends.diff(prepend=ends.new_zeros(1))
        received = begin_all_to_all(sent, self.group).wait()
        rows = _Rows(self.group, *torch.stack([sent, received]).tolist())
        local_ids_R1 = (ids.flatten().index_select(0, order.slot_of_row) % per_rank).unsqueeze(1)
        x_QH, weights_Q1, ids_Q1 = _Send.apply(x, weights, local_ids_R1, order, rows)
        return _Return.apply(experts(x_QH, weights_Q1, RowOrder(ids_Q1, per_rank)), order, rows)


class _Rows:
    """How many rows go to and come from each rank."""

    def __init__(self, group: dist.ProcessGroup, sent: list[int], received: list[int]) -> None:
        self.group, self.sent, self.received = group, sent, received

    def there(self, rows: Tensor) -> Tensor:
        return begin_all_to_all(rows, self.group, self.sent, self.received).wait()

    def back(self, rows: Tensor) -> Tensor:
        return begin_all_to_all(rows, self.group, self.received, self.sent).wait()


class _Send(torch.autograd.Function):
    """x [T, H], weights [T, K] -> x [Q, H], weights [Q, 1], local expert ids [Q, 1] of the rows received."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, ids_R1: Tensor, order: RowOrder, rows: _Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.order, ctx.rows = order, rows
        weights_R1 = weights.flatten().index_select(0, order.slot_of_row).unsqueeze(1)
        id_dtype = torch.int64 if x.dtype.itemsize == 8 else torch.int32
        parts = [x.index_select(0, order.token_of_row), weights_R1, ids_R1.to(id_dtype)]
        ctx.columns = [(part.shape[1], part.dtype) for part in parts]
        x_QH, weights_Q1, ids_Q1 = unpack(rows.there(carry(parts, x.dtype)), ctx.columns)
        ids_Q1 = ids_Q1.to(torch.int64)
        ctx.mark_non_differentiable(ids_Q1)
        return x_QH, weights_Q1, ids_Q1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dx_QH, d_weights_Q1, _ = grads
        slots = ctx.order.row_of_slot
        dx_RH, d_weights_R1 = unpack(ctx.rows.back(carry([dx_QH, d_weights_Q1], dx_QH.dtype)), ctx.columns[:2])
        return (
            sum_slots(dx_RH, slots),
            d_weights_R1.flatten().index_select(0, slots.flatten()).view_as(slots),
            None,
            None,
            None,
        )


class _Return(torch.autograd.Function):
    """Results of the rows received [Q, H] -> the sum of each token's slots [T, H]."""

    @staticmethod
    def forward(ctx: Any, y_QH: Tensor, order: RowOrder, rows: _Rows) -> Tensor:
        ctx.order, ctx.rows = order, rows
        return sum_slots(rows.back(y_QH), order.row_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rows.there(grads[0].index_select(0, ctx.order.token_of_row)), None, None
