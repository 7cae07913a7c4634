"""The operations of the model that other implementations can replace, in plain torch.

A model gets one `Ops` when it is built and hands it to its parts and expert back ends. `trainer.kernels` holds the
implementation in Triton, `trainer.model.exact` the one whose rows do not depend on each other.

Legend: T tokens · E experts · K experts per token · R rows · I expert width. Bytes below are for one row in bf16;
I = 1536 is the 1T model's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from parallel.dispatch.payload import Fp8
from trainer.model.numerics import router_weights, select_experts, wide


class Ops:
    """Plain torch on any device and in any dtype."""

    def fuses(self, x: Tensor) -> bool:
        """True where fused kernels replace the operations below for tensors like `x`."""
        return False

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x: [..., M]; weight: [N, M], in one dtype -> [..., N]."""
        return F.linear(x, weight)

    def grouped_mm(self, rows: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
        """Each expert's rows times its matrix, outside autograd.

        Args: rows: [P, M] of a `PaddedOrder`. matrices: [E, M, N]. offsets: [E] int32, the end of each expert's rows.
        Returns: [P, N]; rows behind offsets[-1] hold what the memory held.
        """
        return F.grouped_mm(rows, matrices, offs=offsets)

    def route(
        self, logits: Tensor, groups: int, experts_per_token: int, gradient: str, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Select experts and weigh them.

        Args: logits: [T, E] fp32 (fp64). Others: as for `select_experts` and `router_weights`.
        Returns: ids [T, K] int64, weights [T, K] in the dtype of logits; only the weights carry gradients.
        """
        ids = select_experts(logits.detach(), groups, experts_per_token)
        return ids, router_weights(logits, ids, gradient, temperature)

    def pad_order(self, order: RowOrder, align: int) -> PaddedOrder:
        """The rows of `order` with each expert's part padded to a multiple of `align`."""
        return PaddedOrder(order, align)

    def weighted_swiglu(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """silu(gate) * up * weight, computed in fp32 (fp64) and rounded once.

        Args: hidden: [R, 2I], gate in the first half of each row, up in the second. weight: [R], any float dtype.
        Returns: [R, I] in the dtype of hidden. Both arguments get gradients; weight's is a sum over each row, in its
        dtype. Only the arguments are kept for backward.

        The passes over fp32 temporaries move 38 I bytes a row forward and about 100 I backward.
        """
        return _WeightedSwiGLU.apply(hidden, weight, self)

    def swiglu_gradients(self, hidden: Tensor, weight: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backward pass of `weighted_swiglu`, for callers that run the GEMMs themselves. It also recomputes the
        second GEMM's input, in the same pass.

        Args: hidden: [R, 2I]. weight: [R]. dy: [R, I], the gradient of the result.
        Returns: the result [R, I]; the gradients of hidden [R, 2I] and of weight [R], in their dtypes.
        """
        result, d_hidden, d_weight = self._swiglu_backward(hidden, weight, dy.contiguous(), recompute=True)
        assert result is not None
        return result, d_hidden, d_weight

    def fp8_payload(self) -> Fp8:
        """Packs hidden states for the trip between ranks with `precision.payload=fp8`."""
        return Fp8()

    def _swiglu_forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        silu = F.silu(gate.to(wide(hidden.dtype)))
        return silu.mul_(up).mul_(weight.unsqueeze(-1)).to(hidden.dtype)

    def _swiglu_backward(
        self, hidden: Tensor, weight: Tensor, dy: Tensor, *, recompute: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """recompute: also return the result of `_swiglu_forward`."""
        high = wide(hidden.dtype)
        gate, up = (half.to(high) for half in hidden.chunk(2, dim=-1))
        weight_R1, silu = weight.to(high).unsqueeze(-1), F.silu(gate)
        product = silu * up
        result = (product * weight_R1).to(hidden.dtype) if recompute else None
        d_weight = product.mul_(dy).sum(-1).to(weight.dtype)
        d_act = dy * weight_R1
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        d_gate, d_up = d_hidden.chunk(2, dim=-1)
        d_up.copy_(silu.mul_(d_act))
        d_gate.copy_(torch.ops.aten.silu_backward(d_act.mul_(up), gate))
        return result, d_hidden, d_weight


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ops: Ops) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.ops = ops
        return ops._swiglu_forward(hidden, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight = ctx.saved_tensors
        _, d_hidden, d_weight = ctx.ops._swiglu_backward(hidden, weight, grads[0].contiguous(), recompute=False)
        return d_hidden, d_weight, None


TORCH = Ops()
