"""Rows sorted by expert, each expert's part padded to the multiple that a quantised GEMM needs; static shapes.

The number of an expert's rows is known only on the device, so the padded rows are laid out within a bound that follows
from the shapes. Unused rows come after the last expert's and are zero.

Legend: T tokens · K experts per token · R = T*K rows · P padded rows · E experts · H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder, sum_slots


def padded_rows(rows: int, experts: int, align: int) -> int:
    """Upper bound of `rows` rows plus up to align - 1 rows of padding for each expert that has a row."""
    return max(align, align * ((rows + (align - 1) * min(experts, rows)) // align))


class PaddedOrder:
    """A `RowOrder` with padding between the experts; computed on the device without a host sync.

    Args: order: the rows without padding. align: the number of each expert's rows becomes a multiple of it.

    Attributes:
        rows: P, a multiple of `align` that holds any routing of R rows over E experts; at least `align`.
        token_of_row [P], slot_of_row [P] (into the flattened [T, K]): int64, -1 in padding.
        row_of_slot [T, K]: the row of each (token, slot).
        offsets [E] int32: the end of each expert's padded rows. An expert without rows has no padding either. Rows
            from offsets[-1] on are padding of no expert: the tail, in which a grouped GEMM leaves what the memory held.
    """

    def __init__(self, order: RowOrder, align: int) -> None:
        (rows,), (experts,) = order.token_of_row.shape, order.offsets.shape
        self.rows, self.slots = padded_rows(rows, experts, align), rows
        counts = order.offsets.diff(prepend=order.offsets.new_zeros(1))
        padded = (counts + (align - 1)).div(align, rounding_mode="floor") * align
        self.offsets = padded.cumsum(0, dtype=torch.int32)
        added = (self.offsets - padded) - (order.offsets - counts)  # how far each expert's first row has moved
        row = torch.arange(rows, device=counts.device)
        self._row = row + added[torch.searchsorted(order.offsets, row, right=True)]  # [R]: the padded row of each row
        self._token, self._slot = order.token_of_row, order.slot_of_row
        self.token_of_row, self.slot_of_row = (
            row.new_full((self.rows,), -1).index_copy_(0, self._row, index) for index in (self._token, self._slot)
        )
        self.row_of_slot = self._row[order.row_of_slot]

    def gather(self, x: Tensor) -> Tensor:
        """[T, H] -> [P, H], zeros in padding; differentiable: a token's gradient is the sum of its rows'."""
        return _GatherTokens.apply(x, self)

    def gather_weights(self, weights: Tensor) -> Tensor:
        """[T, K] -> [P], zeros in padding; differentiable."""
        return _GatherWeights.apply(weights, self)

    def combine(self, rows: Tensor) -> Tensor:
        """[P, H] -> [T, H], the sum of each token's rows in slot order; differentiable, the gradient of padding is
        zero."""
        return _CombineRows.apply(rows, self)

    def zero_tail(self, rows: Tensor) -> Tensor:
        """Return `rows` [P, ...] after its tail was set to zero in place, outside autograd; no host sync.

        For every result of a grouped GEMM, forward and backward: NaN in unwritten memory stays NaN times a weight of
        zero, and spoils a scale that is taken over all rows. The tail is inside the last P - R rows, whatever the
        routing, so no pass over the others is needed.
        """
        if self.rows > self.slots:
            numbers = torch.arange(self.slots, self.rows, device=rows.device)
            behind = (numbers >= self.offsets[-1]).view(-1, *[1] * (rows.ndim - 1))
            rows.detach()[self.slots :].masked_fill_(behind, 0)
        return rows

    # Arithmetic without autograd, which other implementations of the order replace.

    def _spread_tokens(self, x: Tensor) -> Tensor:
        """[T, H] -> [P, H], zeros in padding."""
        return self._spread(x, self._token)

    def _spread_slots(self, weights: Tensor) -> Tensor:
        """[T, K] -> [P], zeros in padding."""
        return self._spread(weights.flatten(), self._slot)

    def _sum_rows(self, rows: Tensor) -> Tensor:
        """[P, H] -> [T, H], the sum of each token's rows in the order of its slots."""
        return sum_slots(rows, self.row_of_slot)

    def _spread(self, values: Tensor, index: Tensor) -> Tensor:
        """values[index] at the rows, zeros in padding: [N, ...], [R] -> [P, ...]."""
        out = values.new_zeros(self.rows, *values.shape[1:])
        return out.index_copy_(0, self._row, values.index_select(0, index))


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: PaddedOrder) -> Tensor:
        ctx.order = order
        return order._spread_tokens(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.order._sum_rows(grads[0]), None


class _GatherWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, order: PaddedOrder) -> Tensor:
        ctx.row_of_slot = order.row_of_slot
        return order._spread_slots(weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.row_of_slot], None


class _CombineRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: PaddedOrder) -> Tensor:
        ctx.order = order
        return order._sum_rows(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.order._spread_tokens(grads[0]), None
