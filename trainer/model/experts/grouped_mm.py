"""Experts around torch's grouped GEMM: bf16 on CUDA; on a CPU, which has no grouped kernel, `blocked_cpu` in its place.

Legend: T tokens · K experts per token · R = T*K rows · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.dispatch.base import RowOrder, sum_slots
from trainer.model.experts.blocked_cpu import BlockedSwiGLU


def grouped_mm(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
    """The back end `grouped_mm`; see `base.Backend`."""
    return (GroupedSwiGLU if x.is_cuda else BlockedSwiGLU).apply(x, weights, w13.to(x.dtype), w2.to(x.dtype), order)


class GroupedSwiGLU(torch.autograd.Function):
    """Gather, two grouped GEMMs with the gated activation between them, sum.

    Saves x [T, H], the first GEMM's result and silu(gate): 3 I numbers a row, nothing [R, H]; backward gathers the rows
    once more. Everything elementwise works in place on tensors that this function owns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        weight_R1 = weights.to(x.dtype).flatten().index_select(0, order.slot_of_row).unsqueeze(-1)
        x_RH = x.index_select(0, order.token_of_row)
        hidden = F.grouped_mm(x_RH, w13.flatten(1, 2).transpose(1, 2), offs=order.offsets)
        gate, up = hidden.chunk(2, dim=-1)
        silu = F.silu(gate)
        weighted = (silu * up).mul_(weight_R1)
        ctx.save_for_backward(x, w13, w2, weight_R1, hidden, silu)
        ctx.order, ctx.weight_dtype = order, weights.dtype
        return sum_slots(F.grouped_mm(weighted, w2.transpose(1, 2), offs=order.offsets), order.row_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, w13, w2, weight_R1, hidden, silu = ctx.saved_tensors
        order, slots = ctx.order, ctx.order.row_of_slot
        dy_RH = grads[0].index_select(0, order.token_of_row)  # contiguous: the grouped GEMM refuses an expanded one
        gate, up = hidden.chunk(2, dim=-1)
        d_weighted = F.grouped_mm(dy_RH, w2, offs=order.offsets)
        act = silu * up
        d_row_weight = (d_weighted * act).sum(-1, dtype=ctx.weight_dtype)
        d_w2 = F.grouped_mm(dy_RH.t(), act.mul_(weight_R1), offs=order.offsets)
        d_act = d_weighted.mul_(weight_R1)
        d_hidden = torch.empty_like(hidden)
        d_gate, d_up = d_hidden.chunk(2, dim=-1)
        torch.mul(d_act, silu, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_act.mul_(up), gate, grad_input=d_gate)
        dx_RH = F.grouped_mm(d_hidden, w13.flatten(1, 2), offs=order.offsets)
        x_RH = x.index_select(0, order.token_of_row)
        d_w13 = F.grouped_mm(d_hidden.t(), x_RH, offs=order.offsets).view_as(w13)
        d_weights = d_row_weight.index_select(0, slots.flatten()).view_as(slots)
        return sum_slots(dx_RH, slots), d_weights, d_w13, d_w2, None
