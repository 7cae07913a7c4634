"""Experts with adapters, as a back end of the experts' module.

Legend: T tokens · K experts per token · P rows, sorted by expert · E experts · I expert width · H hidden size · r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parallel.dispatch.base import RowOrder
from parallel.sharding.local import local_part
from trainer.model.lora.gemm import FrozenProducts, GroupedProducts, LoopProducts, PlainProducts, Products, Rows
from trainer.model.ops import TORCH, Ops


class AdaptedExperts(nn.Module):
    """Frozen experts, each with an adapter beside gate and up, which share A, and one beside down.

    a13 [E, r, H], b13 [E, r, 2I] (gate, up); a2 [E, r, I], b2 [E, r, H]. The rank is at dimension 1 in all of them, so
    that dimension 2 is the long one, which FSDP cuts as it cuts the experts; B is thus stored transposed.

    ops: for what is between the products. up, down: the products with the frozen w13 and w2. products: those with the
    adapters; None for the fastest on the device of the rows. known: gives a simulated rank's order its numbers of rows.
    """

    def __init__(
        self, num_experts: int, hidden_size: int, width: int, *, rank: int, scale: float, ops: Ops = TORCH
    ) -> None:
        super().__init__()
        self.a13 = nn.Parameter(torch.empty(num_experts, rank, hidden_size))
        self.b13 = nn.Parameter(torch.empty(num_experts, rank, 2 * width))
        self.a2 = nn.Parameter(torch.empty(num_experts, rank, width))
        self.b2 = nn.Parameter(torch.empty(num_experts, rank, hidden_size))
        self.scale, self.ops = scale, ops
        self.up: FrozenProducts = PlainProducts()
        self.down: FrozenProducts = PlainProducts()
        self.products: Products | None = None
        self.known: Callable[[RowOrder], RowOrder] | None = None

    def forward(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        """As `trainer.model.experts.base.Backend`; w13 and w2 get no gradient."""
        adapters = [local_part(weight).to(x.dtype) for weight in (self.a13, self.b13, self.a2, self.b2)]
        return _AdaptedSwiGLU.apply(x, weights, *adapters, w13.detach(), w2.detach(), order, self)

    def lay_out(self, order: RowOrder) -> Rows:
        order = order if self.known is None else self.known(order)
        return Rows(order, self.ops.pad_order(order, max(self.up.align, self.down.align)))

    def products_for(self, x: Tensor) -> Products:
        if self.products is not None:
            return self.products
        return GroupedProducts(self.ops) if x.is_cuda else LoopProducts()


class _AdaptedSwiGLU(torch.autograd.Function):
    """Keeps x, the result of the first products (2 I numbers a row) and the two results of rank r; backward gathers the
    rows once more and computes the activation again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        a13: Tensor,
        b13: Tensor,
        a2: Tensor,
        b2: Tensor,
        w13: Tensor,
        w2: Tensor,
        order: RowOrder,
        experts: AdaptedExperts,
    ) -> Tensor:
        rows, mm = experts.lay_out(order), experts.products_for(x)
        row_weight = rows.padded.gather_weights(weights)
        x_PH = rows.padded.gather(x)
        low13_Pr = mm.times(x_PH, a13.mT, rows).mul_(experts.scale)
        hidden = experts.up.forward(x_PH, w13.flatten(1, 2), rows, mm).add_(mm.times(low13_Pr, b13, rows))
        act = experts.ops.weighted_swiglu(hidden, row_weight)
        low2_Pr = mm.times(act, a2.mT, rows).mul_(experts.scale)
        y_PH = experts.down.forward(act, w2, rows, mm).add_(mm.times(low2_Pr, b2, rows))
        ctx.save_for_backward(x, row_weight, hidden, low13_Pr, low2_Pr, a13, b13, a2, b2, w13, w2)
        ctx.rows, ctx.mm, ctx.experts = rows, mm, experts
        return rows.padded.combine(y_PH)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, row_weight, hidden, low13_Pr, low2_Pr, a13, b13, a2, b2, w13, w2 = ctx.saved_tensors
        rows, mm, experts = ctx.rows, ctx.mm, ctx.experts
        dy_PH = rows.padded.gather(grads[0].contiguous())
        d_low2_Pr = mm.times(dy_PH, b2.mT, rows).mul_(experts.scale)
        d_act = experts.down.input_gradient(dy_PH, w2, rows, mm).add_(mm.times(d_low2_Pr, a2, rows))
        act, d_hidden, d_row_weight = experts.ops.swiglu_gradients(hidden, row_weight, d_act)
        d_b2, d_a2 = mm.outer(low2_Pr, dy_PH, rows), mm.outer(d_low2_Pr, act, rows)
        d_low13_Pr = mm.times(d_hidden, b13.mT, rows).mul_(experts.scale)
        dx_PH = experts.up.input_gradient(d_hidden, w13.flatten(1, 2), rows, mm).add_(mm.times(d_low13_Pr, a13, rows))
        d_b13 = mm.outer(low13_Pr, d_hidden, rows)
        d_a13 = mm.outer(d_low13_Pr, rows.padded.gather(x), rows)
        d_weights = d_row_weight[rows.padded.row_of_slot]
        return rows.padded.combine(dx_PH), d_weights, d_a13, d_b13, d_a2, d_b2, None, None, None, None
