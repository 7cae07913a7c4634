"""The reference experts: one matmul after another through plain autograd.

Legend: T tokens · K experts per token · R = T*K rows · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.dispatch.base import RowOrder, sum_slots


def loop(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
    """The back end `loop`, in any dtype; copies the row counts to the host. See `base.Backend`."""
    x_RH, weight_R = _Gather.apply(x, weights, order)
    return _Combine.apply(_swiglu(x_RH, w13.to(x.dtype), w2.to(x.dtype), order.ends(), weight_R), order)


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


def _swiglu(x: Tensor, w13: Tensor, w2: Tensor, ends: list[int], row_weight: Tensor) -> Tensor:
    counts = [end - start for start, end in pairwise([0, *ends])]
    weight_R1 = row_weight.to(x.dtype).unsqueeze(-1)
    # unbind, not w[e]: the backward of an index allocates the gradient of all experts for each expert.
    parts = []
    for rows, weight, (gate, up), down in zip(
        x.split(counts), weight_R1.split(counts), (w.unbind(0) for w in w13.unbind(0)), w2.unbind(0), strict=True
    ):
        parts.append(F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up) * weight, down))
    return torch.cat(parts)
