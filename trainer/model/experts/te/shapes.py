"""The memory of Transformer Engine's grouped GEMMs, for simulated ranks: its kernels do not run on fake tensors.

Read in Transformer Engine 2.20 (`module/grouped_linear.py`). A quantised tensor has one byte a number in each of two
layouts: rows for the forward pass and dgrad, columns for wgrad. A GEMM keeps the columns of its input for backward, and
both layouts of its weights, which all micro-batches of a step share.

Legend: P padded rows · E experts of this rank · I expert width · H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.fp8 import TILE
from trainer.model.experts.te.linear import GEMM_DTYPE
from trainer.model.experts.te.support import multiple_of_rows
from trainer.model.ops import Ops

SCALES = {"fp8_block": TILE, "mxfp8": 32}  # numbers that share a scale of 4 bytes (of 1 byte); others have one for all


class TransformerEngineShapes:
    """`TransformerEngine` without its arithmetic: the same tensors, kept and freed at the same points."""

    def __init__(self, recipe: str, ops: Ops) -> None:
        self.ops = ops
        self.rows = multiple_of_rows(recipe, native=False)
        self.numbers_of_scale = SCALES.get(recipe, 0)
        self.holds = False
        self._held: list[list[Tensor]] = []

    def hold_weights(self, hold: bool) -> None:
        self.holds = hold
        self._held.clear()

    @property
    def held(self) -> list[Tensor]:
        """The quantised weights that are kept for the step."""
        return [part for layouts in self._held for part in layouts]

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        quantised = self._held or [self._quantise_weight(w13), self._quantise_weight(w2)]
        if self.holds:
            self._held = quantised
        padded = self.ops.pad_order(order, self.rows)
        hidden = _Gemm.apply(padded.gather(x.to(GEMM_DTYPE)), w13, quantised[0], self)
        act = self.ops.weighted_swiglu(hidden, padded.gather_weights(weights))
        return padded.combine(_Gemm.apply(act, w2, quantised[1], self)).to(x.dtype)

    def _quantise_weight(self, weight: Tensor) -> list[Tensor]:
        """Both layouts; the weight passes through bf16."""
        whole = weight.detach().to(GEMM_DTYPE).contiguous()
        return [part for _ in range(2) for part in self.quantise(whole.flatten(0, -2), square=True)]

    def quantise(self, x: Tensor, *, square: bool = False) -> list[Tensor]:
        """x [rows, columns] in one layout: codes, and scales of lines (of squares) of numbers."""
        block = self.numbers_of_scale
        scales = x.numel() // block if block else 1
        width = torch.float32 if block in (0, TILE) else torch.uint8
        scales = scales // block if square and block == TILE else scales
        return [x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(max(1, scales), dtype=width)]


class _Gemm(torch.autograd.Function):
    """rows [P, columns], a weight [E, ..., columns] -> [P, rows of the weight]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, quantised: list[Tensor], owner: TransformerEngineShapes) -> Tensor:
        rows, columns = owner.quantise(x), owner.quantise(x)
        y = x.new_empty(len(x), weight[0].numel() // x.shape[1])
        del rows
        # Weights that are not held go the way of all that autograd keeps: a recomputed block lets go of them.
        ctx.save_for_backward(weight, *columns, *(() if owner.holds else quantised))
        ctx.owner, ctx.in_place = owner, _adds_in_place(weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        weight, codes, *_ = ctx.saved_tensors
        dy = grads[0]
        layouts = ctx.owner.quantise(dy), ctx.owner.quantise(dy)
        dx = dy.new_empty(codes.shape)
        d_weight = None if ctx.in_place else torch.empty_like(weight, memory_format=torch.contiguous_format)
        del layouts
        return dx, d_weight, None, None


def _adds_in_place(weight: Tensor) -> bool:
    """True where the GEMM adds to the gradient that the parameter behind `weight` has, as `gradient` decides."""
    behind = weight if weight.is_leaf else getattr(weight.grad_fn.next_functions[0][0], "variable", None)  # type: ignore[union-attr]
    return weight.dtype == torch.float32 and behind is not None and behind.grad is not None
