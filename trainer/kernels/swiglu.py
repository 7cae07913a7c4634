"""The gated activation times the routing weight, between the two GEMMs of SwiGLU experts.

Legend: R rows · I expert width. Bytes below are for one row in bf16; I = 1536 is the 1T model's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.kernels import on_triton
from trainer.precision import wide


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        if on_triton(hidden):
            from trainer.kernels import triton_swiglu

            return triton_swiglu.forward(hidden, weight)
        gate, up = hidden.chunk(2, dim=-1)
        silu = F.silu(gate.to(wide(hidden.dtype)))
        return silu.mul_(up).mul_(weight.unsqueeze(-1)).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        _, d_hidden, d_weight = _backward(hidden, weight, grads[0], again=False)
        return d_hidden, d_weight


def weighted_swiglu(hidden: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up * weight, in fp32 (fp64) inside, rounded once.

    Args: hidden: [R, 2I], gate in the first half of each row, up in the second. weight: [R], of any float dtype.
    Returns: [R, I] in the dtype of hidden. Gradients go to both; weight's is a sum over each row, in its dtype.

    Keeps nothing but its arguments for backward. A row is 6 I bytes forward (9 KB) and 10 I backward (15 KB) in the
    Triton kernels, which read and write everything once; the twin's passes over fp32 temporaries move 38 I and about
    100 I.
    """
    return _WeightedSwiGLU.apply(hidden, weight)


def swiglu_gradients(hidden: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of `weighted_swiglu` for who calls the GEMMs himself: what went into the second one, made again in the
    same pass (2 I bytes more), and the gradients.

    Args: hidden: [R, 2I]. weight: [R]. dy: [R, I], the gradient of the result.
    Returns: the result [R, I]; the gradients of hidden [R, 2I] and of weight [R], in their dtypes.
    """
    result, d_hidden, d_weight = _backward(hidden, weight, dy, again=True)
    assert result is not None
    return result, d_hidden, d_weight


def _backward(hidden: Tensor, weight: Tensor, dy: Tensor, *, again: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    dy = dy.contiguous()
    if on_triton(hidden):
        from trainer.kernels import triton_swiglu

        return triton_swiglu.backward(hidden, weight, dy, again)
    high = wide(hidden.dtype)
    gate, up = (half.to(high) for half in hidden.chunk(2, dim=-1))
    weight_R1, silu = weight.to(high).unsqueeze(-1), F.silu(gate)
    product = silu * up
    result = (product * weight_R1).to(hidden.dtype) if again else None
    d_weight = product.mul_(dy).sum(-1).to(weight.dtype)
    d_act = dy * weight_R1
    d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    d_gate, d_up = d_hidden.chunk(2, dim=-1)
    d_up.copy_(silu.mul_(d_act))
    d_gate.copy_(torch.ops.aten.silu_backward(d_act.mul_(up), gate))
    return result, d_hidden, d_weight
