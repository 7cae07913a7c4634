"""SwiGLU experts with the rounding of block-scaled FP8, in fp32 arithmetic on any device.

A matmul of FP8 numbers sums their products in fp32. So does this one, of the same numbers: each operand is rounded to
FP8 (`parallel.fp8`) and multiplied in fp32. It gains no speed; it shows the effect of FP8 on a run, and faster back
ends are compared with it.

Numbers that share a scale form a tile, of three kinds. A tile extends along the dimension that the matmul sums over, so
that its part of the sum has one factor:

    across   1 x 128, along a row              activations and gradients, where a matmul sums over their columns
    down     128 x 1, along a column           the same, where it sums over an expert's rows: the weight gradients
    square   128 x 128, inside one expert      weights, so that forward and backward use the same numbers

    forward   hidden = across(x)  square(w13)^T       act = silu(gate) * up * weight      y = across(act)  square(w2)^T
    dgrad     dx = across(d_hidden)  square(w13)                                     d_act = across(dy)  square(w2)
    wgrad     d_w13 = down(d_hidden)^T  down(x)                                  d_w2 = down(dy)^T  down(act)

Each is taken of the unrounded tensor: `down` never sees the rounding of `across`. Nothing else is quantised, neither
silu nor the routing weight before w2. Between the matmuls numbers are kept in the dtype of x, as a faster back end
keeps them: with x in bf16 hidden, act and their gradients are rounded to bf16 before they are quantised, and so are the
weights. A token's rows are summed in fp32, in the order of its slots, and rounded once.

Each expert's rows are padded with zeros to a multiple of 128, so that no tile belongs to two experts. The last tile of
a row or of a weight may be shorter than 128. w13 [2, I, H] of an expert is one matrix [2I, H], and its tiles may hold
rows of both halves. Where ranks share an expert's width each cuts its own part into tiles.

Legend: T tokens · K experts per token · P padded rows · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.dispatch.base import RowOrder, sum_slots
from parallel.dispatch.padding import PaddedOrder
from parallel.fp8 import TILE, fake_quantize
from trainer.model.ops import TORCH, Ops


def across(x: Tensor) -> Tensor:
    return fake_quantize(x.float(), (1, TILE))


def down(x: Tensor) -> Tensor:
    return fake_quantize(x.float(), (TILE, 1))


def square(w: Tensor) -> Tensor:
    return fake_quantize(w.float(), (TILE, TILE))


def quantise_weights(w13: Tensor, w2: Tensor, rounding: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers that FP8 matmuls multiply with: [E, 2I, H] and [E, H, I] in fp32, of weights that are rounded first.
    The one function for training and rollouts."""
    return square(w13.to(rounding).flatten(1, 2)), square(w2.to(rounding))


class Fp8Reference:
    """A `QuantizedBackend` for any device. While weights are held, it keeps their quantised values in fp32.

    rounding: the dtype that weights are rounded to before they are quantised, for results equal to those of an engine
    that receives them in it; None: the dtype of x.
    """

    def __init__(self, ops: Ops = TORCH, rounding: torch.dtype | None = None) -> None:
        self.ops, self.rounding = ops, rounding
        self._hold = False
        self._held: tuple[Tensor, Tensor] | None = None

    def hold_weights(self, hold: bool) -> None:
        self._hold = hold
        if not hold:
            self._held = None

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        """x: [T, H] fp32 or bf16; weights: [T, K]; w13: [E, 2, I, H]; w2: [E, H, I] -> [T, H] in the dtype of x.

        H and I must be multiples of 4, as torch's grouped GEMM requires.
        """
        quantised = self._held or quantise_weights(w13.detach(), w2.detach(), self.rounding or x.dtype)
        if self._hold:
            self._held = quantised
        return _Experts.apply(x, weights, w13, w2, *quantised, self.ops.pad_order(order, TILE), self.ops)


class _Experts(torch.autograd.Function):
    """The formulas above. Keeps x [T, H], hidden [P, 2I] and the quantised weights; backward gathers the rows of x and
    dy itself."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, q13: Tensor, q2: Tensor,
        order: PaddedOrder, ops: Ops,
    ) -> Tensor:  # fmt: skip
        row_weight = order.gather_weights(weights)
        hidden = _mm(order.gather(across(x)), q13.mT, order, ops).to(x.dtype)
        act = ops.weighted_swiglu(hidden, row_weight)
        y = order.combine(_mm(across(act), q2.mT, order, ops)).to(x.dtype)
        ctx.save_for_backward(x, row_weight, hidden, q13, q2)
        ctx.order, ctx.ops = order, ops
        ctx.weight_shape, ctx.weight_dtypes = w13.shape, (w13.dtype, w2.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, row_weight, hidden, q13, q2 = ctx.saved_tensors
        order, dy = ctx.order, grads[0]

        d_act = _matmul(order.gather(across(dy)), q2, order).to(x.dtype)
        act, d_hidden, d_row_weight = ctx.ops.swiglu_gradients(hidden, row_weight, d_act)
        dx = sum_slots(_matmul(across(d_hidden), q13, order), order.row_of_slot).to(x.dtype)

        d_w2 = _matmul(down(order.gather(dy)).mT, down(act), order)
        d_w13 = _matmul(down(d_hidden).mT, down(order.gather(x)), order)

        d_w13, d_w2 = d_w13.view(ctx.weight_shape).to(ctx.weight_dtypes[0]), d_w2.to(ctx.weight_dtypes[1])
        return dx, d_row_weight[order.row_of_slot], d_w13, d_w2, None, None, None, None


def _mm(rows: Tensor, matrices: Tensor, order: PaddedOrder, ops: Ops) -> Tensor:
    """`_matmul` of each expert's rows, forward."""
    return order.zero_tail(ops.grouped_mm(rows, matrices, order.offsets).clone())


def _matmul(a: Tensor, b: Tensor, order: PaddedOrder) -> Tensor:
    """Each expert's rows [P, m] times its matrix [E, m, n] -> [P, n]; or sums over its rows, [m, P] and [P, n] ->
    [E, m, n]. Rows behind the last expert's, which the GEMM does not write, are zero."""
    found = F.grouped_mm(a, b, offs=order.offsets)
    # A copy: selective recomputation keeps the GEMM's own result, and refuses one that was changed in place.
    return order.zero_tail(found.clone()) if found.ndim == 2 else found
