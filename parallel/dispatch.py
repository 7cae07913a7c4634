"""Dispatchers bring tokens to experts and the experts' results back.

A dispatcher is an object that a mixture-of-experts block owns; the block's mathematics does not know which one it has.
`LocalDispatch` is the one for experts that are all on this rank.

Legend: T tokens on this rank · K experts per token · R = T*K rows · E experts · H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# (x_sorted [R, H], offsets [E] int32 on the device: end of each expert's rows, row_weight [R]) -> y_sorted [R, H]
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


class Dispatcher(Protocol):
    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: Experts) -> Tensor:
        """Sum over each token's K experts of weight * expert(token).

        Args:
            x: [T, H]. ids: [T, K] int64, global expert ids. weights: [T, K], carries gradients.
            num_experts: E, over all ranks. experts: this rank's experts, behind the row-sorted contract above.
        Returns: [T, H] in the dtype of x.
        """
        ...


class RowOrder:
    """How T*K (token, slot) pairs are laid out as rows sorted by expert; built on the device without a host sync.

    Attributes: slot_of_row [R] index into the flattened [T, K]; token_of_row [R]; row_of_slot [T, K], the inverse;
    offsets [E] int32, the end of each expert's rows. Rows of one expert keep token order (the sort is stable).
    """

    def __init__(self, ids: Tensor, num_experts: int) -> None:
        sorted_ids, self.slot_of_row = torch.sort(ids.flatten(), stable=True)
        self.token_of_row = self.slot_of_row.div(ids.shape[1], rounding_mode="floor")
        rows = torch.arange(ids.numel(), device=ids.device)
        self.row_of_slot = torch.empty_like(rows).scatter_(0, self.slot_of_row, rows).view_as(ids)
        experts = torch.arange(num_experts, device=ids.device)
        # searchsorted, not bincount: bincount syncs the host on CUDA.
        self.offsets = torch.searchsorted(sorted_ids, experts, right=True, out_int32=True)


def sum_slots(rows: Tensor, row_of_slot: Tensor) -> Tensor:
    """Sum each token's K rows in slot order: [R, H], [T, K] -> [T, H]. A gather, so without atomics and bitwise fixed."""
    return F.embedding_bag(row_of_slot, rows, mode="sum")


class _Gather(torch.autograd.Function):
    """x [T, H], weights [T, K] -> rows [R, H], row weights [R]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, order: RowOrder) -> tuple[Tensor, Tensor]:
        ctx.row_of_slot = order.row_of_slot
        return x.index_select(0, order.token_of_row), weights.flatten().index_select(0, order.slot_of_row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        d_rows, d_row_weight = grads
        slots = ctx.row_of_slot
        return sum_slots(d_rows, slots), d_row_weight.index_select(0, slots.flatten()).view_as(slots), None


class _Combine(torch.autograd.Function):
    """rows [R, H] -> [T, H], the sum of each token's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: RowOrder) -> Tensor:
        ctx.token_of_row = order.token_of_row
        return sum_slots(rows, order.row_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.token_of_row), None


class LocalDispatch:
    """All experts are here: sort the rows by expert, run the experts, put the rows back."""

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: Experts) -> Tensor:
        order = RowOrder(ids, num_experts)
        x_RH, weight_R = _Gather.apply(x, weights, order)
        return _Combine.apply(experts(x_RH, order.offsets, weight_R), order)
