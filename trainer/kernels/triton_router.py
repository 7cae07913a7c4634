"""The router from logits to ids and weights in one Triton kernel: one program a token, its logits in registers.

Legend: T tokens · E experts · G router groups · n = E/G experts a group · K experts per token · j = K/G of each group.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def route(
    logits: Tensor, groups: int, experts_per_token: int, gradient: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """logits [T, E] fp32 -> ids [T, K] int64, weights [T, K] fp32; see `Ops.route`."""
    return _Routing.apply(logits, groups, experts_per_token, gradient, temperature)


class _Routing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, groups: int, experts_per_token: int, gradient: str, temperature: float
    ) -> tuple[Tensor, Tensor]:
        ids, weights = forward(logits, groups, experts_per_token)
        ctx.save_for_backward(logits, ids, weights)
        ctx.mark_non_differentiable(ids)
        ctx.gradient, ctx.temperature = gradient, temperature
        return ids, weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (logits, ids, weights), d_weights = ctx.saved_tensors, grads[1]
        if ctx.gradient == "ste":
            d_logits = backward(logits, ids, d_weights, ctx.temperature)
        else:
            weighted = weights * d_weights
            d_selected = weighted.addcmul_(weights, weighted.sum(-1, keepdim=True), value=-1)
            d_logits = torch.zeros_like(logits).scatter_(-1, ids, d_selected)
        return d_logits, None, None, None, None


@triton.jit
def _ordered(z: tl.tensor) -> tl.tensor:
    """fp32 -> int32 that sorts as torch sorts: -0 = 0, NaN above all and equal to NaN; the least int32 stays free."""
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    return tl.where(z == z, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


@triton.jit
def forward_kernel(
    logits: tl.tensor, ids: tl.tensor, weights: tl.tensor,
    G: tl.constexpr, N: tl.constexpr, PICKS: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS)[:, None], tl.arange(0, MEMBERS)[None, :]
    inside = (group < G) & (member < N)
    z_Gn = tl.load(logits + token * (G * N) + group * N + member, inside, 0.0)
    left = tl.where(inside, _ordered(z_Gn), -0x80000000)
    place = tl.full([GROUPS, MEMBERS], -1, tl.int32)  # the position of an expert among the picks of its group
    for pick in tl.static_range(PICKS):
        best_G = tl.argmax(left, 1, tie_break_left=True)
        taken = inside & (member == best_G[:, None])
        place = tl.where(taken, pick, place)
        left = tl.where(taken, -0x80000000, left)
    chosen = place >= 0
    selected = tl.where(chosen, z_Gn, float("-inf"))
    exp = tl.where(chosen, tl.exp(selected - tl.max(selected)), 0.0)
    slot = token * (G * PICKS) + group * PICKS + place
    tl.store(weights + slot, exp / tl.sum(exp), chosen)
    tl.store(ids + slot, (group * N + member).to(tl.int64), chosen)


@triton.jit
def backward_kernel(
    logits: tl.tensor, ids: tl.tensor, d_weights: tl.tensor, d_logits: tl.tensor,
    temperature: float, E: tl.constexpr, K: tl.constexpr, EXPERTS: tl.constexpr,
) -> None:  # fmt: skip
    """p_e (1[e selected] s_e - sum over selected of p s) / temperature, with p = softmax(logits / temperature)."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, EXPERTS)
    inside = expert < E
    z_E = tl.load(logits + token * E + expert, inside, float("-inf")) / temperature
    exp_E = tl.exp(z_E - tl.max(z_E))
    p_E = exp_E / tl.sum(exp_E)
    s_E = tl.zeros([EXPERTS], tl.float32)
    for slot in tl.static_range(K):
        s = tl.load(d_weights + token * K + slot)
        s_E = tl.where(expert == tl.load(ids + token * K + slot), s, s_E)
    weighted_E = p_E * s_E
    tl.store(d_logits + token * E + expert, (weighted_E - p_E * tl.sum(weighted_E)) / temperature, inside)


def forward(logits: Tensor, groups: int, experts_per_token: int) -> tuple[Tensor, Tensor]:
    """[T, E] fp32 -> ids [T, K] int64, weights [T, K]."""
    tokens, experts = logits.shape
    per_group, picks = experts // groups, experts_per_token // groups
    ids = logits.new_empty(tokens, experts_per_token, dtype=torch.int64)
    weights = logits.new_empty(tokens, experts_per_token)
    if tokens:
        forward_kernel[(tokens,)](
            logits.contiguous(), ids, weights, G=groups, N=per_group, PICKS=picks,
            GROUPS=triton.next_power_of_2(groups), MEMBERS=triton.next_power_of_2(per_group), num_warps=1,
        )  # fmt: skip
    return ids, weights


def backward(logits: Tensor, ids: Tensor, d_weights: Tensor, temperature: float) -> Tensor:
    """The straight-through gradient of the weights [T, K] -> of the logits [T, E]."""
    (tokens, experts), d_logits = logits.shape, torch.empty_like(logits, memory_format=torch.contiguous_format)
    if tokens:
        backward_kernel[(tokens,)](
            logits.contiguous(), ids, d_weights.contiguous(), d_logits, temperature,
            E=experts, K=ids.shape[1], EXPERTS=triton.next_power_of_2(experts), num_warps=1,
        )  # fmt: skip
    return d_logits
