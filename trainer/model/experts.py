"""SwiGLU experts over rows sorted by expert, behind one contract with several back ends.

Contract: (x_sorted [R, H], offsets [E] int32 on the device, row_weight [R]) -> y_sorted [R, H]. The routing weight is
applied before the down projection, so that the experts' outputs need not be kept for its gradient.

Legend: R rows · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _GroupedSwiGLU(torch.autograd.Function):
    """Two grouped GEMMs with the gated activation between them.

    Saves the rows, the first GEMM's result and silu(gate): 3 I + H numbers a row, and no [R, H] result. Everything
    elementwise works in place on tensors that this function owns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor, row_weight: Tensor, offsets: Tensor) -> Tensor:
        hidden = F.grouped_mm(x, w13.flatten(1, 2).transpose(1, 2), offs=offsets)
        gate, up = hidden.chunk(2, dim=-1)
        silu = F.silu(gate)
        weighted = (silu * up).mul_(row_weight.to(x.dtype).unsqueeze(-1))
        ctx.save_for_backward(x, w13, w2, row_weight, offsets, hidden, silu)
        return F.grouped_mm(weighted, w2.transpose(1, 2), offs=offsets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, w13, w2, row_weight, offsets, hidden, silu = ctx.saved_tensors
        dy = grads[0].contiguous()  # an expanded gradient raises in the grouped GEMM
        gate, up = hidden.chunk(2, dim=-1)
        weight_R1 = row_weight.to(x.dtype).unsqueeze(-1)
        d_weighted = F.grouped_mm(dy, w2, offs=offsets)
        act = silu * up
        d_row_weight = (d_weighted * act).sum(-1, dtype=row_weight.dtype)
        d_w2 = F.grouped_mm(dy.t(), act.mul_(weight_R1), offs=offsets)
        d_act = d_weighted.mul_(weight_R1)
        d_hidden = torch.empty_like(hidden)
        d_gate, d_up = d_hidden.chunk(2, dim=-1)
        torch.mul(d_act, silu, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_act.mul_(up), gate, grad_input=d_gate)
        dx = F.grouped_mm(d_hidden, w13.flatten(1, 2), offs=offsets)
        d_w13 = F.grouped_mm(d_hidden.t(), x, offs=offsets).view_as(w13)
        return dx, d_w13, d_w2, d_row_weight, None


def grouped_mm_experts(x: Tensor, w13: Tensor, w2: Tensor, offsets: Tensor, row_weight: Tensor) -> Tensor:
    """torch's grouped GEMM: fp32 or bf16 on CPU, bf16 on CUDA. Shapes as in `Experts`."""
    if x.dtype == torch.float64:
        raise TypeError("model.expert_backend=grouped_mm has no fp64 kernel; use model.expert_backend=loop")
    return _GroupedSwiGLU.apply(x, w13, w2, row_weight, offsets)


def loop_experts(x: Tensor, w13: Tensor, w2: Tensor, offsets: Tensor, row_weight: Tensor) -> Tensor:
    """The reference: one matmul after another, any dtype. Copies the row counts to the host. Shapes as in `Experts`."""
    counts = offsets.diff(prepend=offsets.new_zeros(1)).tolist()
    weight_R1 = row_weight.to(x.dtype).unsqueeze(-1)
    # unbind, not w[e]: the backward of an index allocates the gradient of all experts for each expert.
    parts = []
    for rows, weight, (gate, up), down in zip(
        x.split(counts), weight_R1.split(counts), (w.unbind(0) for w in w13.unbind(0)), w2.unbind(0), strict=True
    ):
        parts.append(F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up) * weight, down))
    return torch.cat(parts)


BACKENDS = {"grouped_mm": grouped_mm_experts, "loop": loop_experts}


class Experts(nn.Module):
    """E SwiGLU experts as two parameters: w13 [E, 2, I, H] (gate, up) and w2 [E, H, I].

    Rows of an expert that gets none cost nothing and its gradient is zero.
    """

    def __init__(self, num_experts: int, hidden_size: int, width: int, backend: str) -> None:
        super().__init__()
        self.w13 = nn.Parameter(torch.empty(num_experts, 2, width, hidden_size))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_size, width))
        self.backend = BACKENDS[backend]

    def forward(self, x: Tensor, offsets: Tensor, row_weight: Tensor) -> Tensor:
        """x: [R, H] sorted by expert; offsets: [E] int32, end of each expert's rows; row_weight: [R] -> [R, H]."""
        return self.backend(x, self.w13.to(x.dtype), self.w2.to(x.dtype), offsets, row_weight)
