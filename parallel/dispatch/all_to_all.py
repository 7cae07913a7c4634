"""General expert parallelism: any router groups, any number of experts per token, any cut of the experts.

Each (token, slot) row is sent to the rank that holds its expert, so the numbers of rows are exchanged first and the
host waits for them. Weights and expert ids travel with the rows: three collectives forward, two backward.

Legend: T tokens on this rank · K experts per token · R = T*K rows sent · Q rows received · E experts · H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.base import RowOrder, RunExperts, sum_slots
from parallel.dispatch.collectives import start_all_to_all
from parallel.dispatch.payload import Wire


class AllToAllDispatch:
    """Dispatcher for E experts cut into contiguous equal parts over the ranks of `group`, whose T may differ."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: RunExperts) -> Tensor:
        """Implements `Dispatcher`; `num_experts` must be a multiple of the group's size. Waits for the device once."""
        per_rank = num_experts // self.group.size()
        order = RowOrder(ids, num_experts)
        rows = _Rows(self.group, *self._count_rows(order, per_rank))
        local_ids_R1 = (ids.flatten().index_select(0, order.slot_of_row) % per_rank).unsqueeze(1)
        x_QH, weights_Q1, ids_Q1 = _SendRows.apply(x, weights, local_ids_R1, order, rows)
        return _ReturnRows.apply(experts(x_QH, weights_Q1, RowOrder(ids_Q1, per_rank)), order, rows)

    def _count_rows(self, order: RowOrder, per_rank: int) -> tuple[list[int], list[int]]:
        """Rows sent to each rank, and received from each. Waits for the device."""
        sent, received = self._exchange_counts(order, per_rank).tolist()
        return sent, received

    def _exchange_counts(self, order: RowOrder, per_rank: int) -> Tensor:
        """[2, ranks]: rows sent, rows received."""
        # Rows sorted by expert are sorted by rank too.
        ends = order.offsets[per_rank - 1 :: per_rank]
        sent = ends.diff(prepend=ends.new_zeros(1))
        return torch.stack([sent, start_all_to_all(sent, self.group).wait()])


class _Rows:
    """Numbers of rows that go to and come from each rank, and the transfers in both directions."""

    def __init__(self, group: dist.ProcessGroup, sent: list[int], received: list[int]) -> None:
        self.group, self.sent, self.received = group, sent, received

    def to_experts(self, rows: Tensor) -> Tensor:
        return start_all_to_all(rows, self.group, self.sent, self.received).wait()

    def from_experts(self, rows: Tensor) -> Tensor:
        return start_all_to_all(rows, self.group, self.received, self.sent).wait()


class _SendRows(torch.autograd.Function):
    """x [T, H], weights [T, K] -> x [Q, H], weights [Q, 1], local expert ids [Q, 1] of the rows received."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, ids_R1: Tensor, order: RowOrder, rows: _Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.order, ctx.rows = order, rows
        weights_R1 = weights.flatten().index_select(0, order.slot_of_row).unsqueeze(1)
        id_dtype = torch.int64 if x.dtype.itemsize == 8 else torch.int32
        wire = Wire()
        message = wire.join(x.index_select(0, order.token_of_row), weights_R1, ids_R1.to(id_dtype))
        x_QH, weights_Q1, ids_Q1 = wire.split(rows.to_experts(message))
        ids_Q1 = ids_Q1.to(torch.int64)
        ctx.mark_non_differentiable(ids_Q1)
        return x_QH, weights_Q1, ids_Q1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dx_QH, d_weights_Q1, _ = grads
        slots, wire = ctx.order.row_of_slot, Wire()
        dx_RH, d_weights_R1 = wire.split(ctx.rows.from_experts(wire.join(dx_QH, d_weights_Q1)))
        return (
            sum_slots(dx_RH, slots),
            d_weights_R1.flatten().index_select(0, slots.flatten()).view_as(slots),
            None,
            None,
            None,
        )


class _ReturnRows(torch.autograd.Function):
    """Results of the rows received [Q, H] -> the sum of each token's slots [T, H]."""

    @staticmethod
    def forward(ctx: Any, y_QH: Tensor, order: RowOrder, rows: _Rows) -> Tensor:
        ctx.order, ctx.rows = order, rows
        return sum_slots(rows.from_experts(y_QH), order.row_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rows.to_experts(grads[0].index_select(0, ctx.order.token_of_row)), None, None
