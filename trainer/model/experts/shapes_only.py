"""Experts without arithmetic, for simulated ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder


def shapes_only(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
    """A back end whose results and gradients have the right shapes and no values; see `base.Backend`.

    The others read row counts on the host or have kernels for some dtypes only, which fake tensors cannot follow; none
    of them communicates with other ranks.
    """
    return _ShapesOnly.apply(x, weights, w13, w2)


class _ShapesOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights, w13, w2)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)
