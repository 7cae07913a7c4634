"""A frozen projection of attention in FP8.

Legend: T tokens · M inputs · N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.frozen.blocks import Blocks, dequantize
from trainer.model.ops import Ops


class ScaledLinear(nn.Module):
    """In the place of `plain_linear`, for a weight of codes; holds their scales [r, c], fp32.

    They are not part of the state of a run, whose base does not change: `trainer.weights.scaled` reads them.
    """

    scales: Tensor

    def __init__(self, blocks: Blocks, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.register_buffer("scales", torch.empty(blocks.shape, device=device), persistent=False)

    def forward(self, ops: Ops, x: Tensor, weight: Tensor) -> Tensor:
        """x: [T, M]; weight: [N, M] uint8 -> [T, N] in the dtype of x."""
        return _Linear.apply(x, weight, self, ops)

    def values(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """weight: [N, M] uint8 -> its values in `dtype`."""
        return dequantize(weight, self.scales, self.blocks, dtype)


class _Linear(torch.autograd.Function):
    """Keeps no values. Codes are kept outside of what autograd saves, so that nothing moves them as activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, base: ScaledLinear, ops: Ops) -> Tensor:
        ctx.weight, ctx.base = weight, base
        return ops.linear(x, base.values(weight, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (dy,) = grads
        dx = dy @ ctx.base.values(ctx.weight, dy.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None
