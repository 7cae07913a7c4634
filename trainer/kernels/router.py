"""The router from logits to ids and weights in one kernel.

Legend: T tokens · E experts · G router groups · K experts per token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Routing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, groups: int, experts_per_token: int, gradient: str, temperature: float
    ) -> tuple[Tensor, Tensor]:
        from trainer.kernels import triton_router

        ids, weights = triton_router.forward(logits, groups, experts_per_token)
        ctx.save_for_backward(logits, ids, weights)
        ctx.mark_non_differentiable(ids)
        ctx.gradient, ctx.temperature = gradient, temperature
        return ids, weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        from trainer.kernels import triton_router

        (logits, ids, weights), d_weights = ctx.saved_tensors, grads[1]
        if ctx.gradient == "ste":
            d_logits = triton_router.backward(logits, ids, d_weights, ctx.temperature)
        else:
            weighted = weights * d_weights
            d_selected = weighted.addcmul_(weights, weighted.sum(-1, keepdim=True), value=-1)
            d_logits = torch.zeros_like(logits).scatter_(-1, ids, d_selected)
        return d_logits, None, None, None, None


def fused_routing(
    logits: Tensor, groups: int, experts_per_token: int, gradient: str, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`select_experts(logits, ...)` and `router_weights(logits, ids, ...)` in one: for tensors that are `on_triton`.

    Args: logits: [T, E] fp32. groups, experts_per_token, gradient, temperature: as those two take them.
    Returns: ids [T, K] int64, those of `select_experts` also among ties, infinities and NaN; weights [T, K] fp32.

    A token is 4 E + 12 K bytes forward (2.1 KB with E = 512, K = 8) and 8 E + 12 K backward. The twin's passes move
    4 E + 40 K forward where each group gives one expert (argmax, offset, gather, softmax), near 60 E where it sorts;
    backward about 36 E (division, softmax, product, scatter, division).
    """
    return _Routing.apply(logits, groups, experts_per_token, gradient, temperature)
