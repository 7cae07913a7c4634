"""The numerically sensitive operations of the model: RMSNorm, rotary embedding, expert selection, router softmax.

Each is written once, so that training, evaluation and generation compute alike. All of them work in fp32 (fp64 inputs
stay fp64) and cast the result back.

They are autograd functions with hand-written backward passes: on a CPU a step is bound by its passes over memory, and
composed from elementwise operations each of these would make three to four times as many.

Legend: T tokens · h heads of one kind · d head dimension · E experts · K experts per token · G router groups ·
n = E/G experts a group · j = K/G experts of each group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sensitive operations compute on inputs of `dtype`: fp64 for fp64, otherwise fp32."""
    return torch.promote_types(dtype, torch.float32)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, kept: [..., d] -> [..., 1]."""
    # The norm reads x once and writes nothing of x's size, unlike square().mean().
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()


def _rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x * rstd * weight with respect to x and weight; all in the wide dtype."""
    unit = x * rstd
    product = dy * unit
    d_weight = product.flatten(0, -2).sum(0)
    mean = torch.mv(product.flatten(0, -2), weight).mul_(1.0 / x.shape[-1]).view(rstd.shape)
    dx = torch.mul(dy, weight, out=product).addcmul_(unit, mean, value=-1).mul_(rstd)
    return dx, d_weight


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    high = x.to(wide(x.dtype))
    rstd = inverse_rms(high, eps)
    return torch.mul(high, rstd).mul_(weight).to(x.dtype), rstd


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        dx, d_weight = _rms_norm_backward(grads[0].to(rstd.dtype), x.to(rstd.dtype), weight.to(rstd.dtype), rstd)
        return dx.to(x.dtype), d_weight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension: x / sqrt(mean(x^2) + eps) * weight.

    Args:
        x: [..., H], any float dtype. weight: [H]. eps: added to the mean square.
    Returns: [..., H] in the dtype of x; statistics and product are taken in fp32.
    """
    # Generation calls it for a few tokens at a time, where `apply` would take as long as the arithmetic.
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _rms_norm(x, weight, eps)[0]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) on the two halves of the last dimension, written to `out`."""
    x1, x2 = x.chunk(2, dim=-1)
    out1, out2 = out.chunk(2, dim=-1)
    torch.mul(x1, cos, out=out1).addcmul_(x2, sin, value=-1)
    torch.mul(x2, cos, out=out2).addcmul_(x1, sin)
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        high = x.to(cos.dtype)
        return _rotate(high, cos, sin, torch.empty_like(high, memory_format=torch.contiguous_format)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        dy = grads[0].to(cos.dtype)
        dx = _rotate(dy, cos, -sin, torch.empty_like(dy, memory_format=torch.contiguous_format))
        return dx.to(grads[0].dtype), None, None


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding with the rotate-half pairing.

    Args:
        x: [..., d]. cos, sin: in fp32 (fp64), of a shape that broadcasts to [..., d/2].
    Returns: [..., d] in the dtype of x.
    """
    return _Rotary.apply(x, cos, sin)


def _norm_rotary(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    high = x.to(cos.dtype)
    rstd = inverse_rms(high, eps)
    unit = torch.mul(high, rstd).mul_(weight)
    return _rotate(unit, cos, sin, torch.empty_like(unit)).to(x.dtype), rstd


class _NormRotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        y, rstd = _norm_rotary(x, weight, cos, sin, eps)
        ctx.save_for_backward(x, weight, rstd, cos, sin)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, rstd, cos, sin = ctx.saved_tensors
        dy = grads[0].to(rstd.dtype)
        # The transpose of the rotation is the rotation by the negated sine, whatever the tables hold (FoPE's are not
        # of unit modulus).
        d_unit = _rotate(dy, cos, -sin, torch.empty_like(dy, memory_format=torch.contiguous_format))
        dx, d_weight = _rms_norm_backward(d_unit, x.to(rstd.dtype), weight.to(rstd.dtype), rstd)
        return dx.to(x.dtype), d_weight.to(weight.dtype), None, None, None


def norm_rotary(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Per-head RMSNorm followed by the rotary embedding with the rotate-half pairing.

    Args:
        x: [T, k, r, d], r heads sharing each of k tables. weight: [d].
        cos, sin: [T, k or 1, 1, d/2] in fp32 (fp64); need not be of unit modulus.
    Returns: [T, k, r, d] in the dtype of x.
    """
    if not torch.is_grad_enabled():
        return _norm_rotary(x, weight, cos, sin, eps)[0]
    return _NormRotary.apply(x, weight, cos, sin, eps)


def log_sum_exp(logits: Tensor) -> Tensor:
    """logsumexp over the last dimension, [N, V] -> [N]; a row has the same bits whatever other rows there are.

    On a CPU, torch (2.13) splits the sum of a single long row among threads, but never the sums of several rows.
    """
    if len(logits) == 1:
        return torch.logsumexp(logits.expand(2, -1), dim=-1)[:1]
    return torch.logsumexp(logits, dim=-1)


def select_experts(logits: Tensor, groups: int, experts_per_token: int) -> Tensor:
    """The K/G experts with the largest logits of each group; ties go to the lowest index on every device.

    Args: logits: [T, E] fp32 (fp64). groups: G divides E and K.
    Returns: [T, K] int64 global expert ids; slots in group order, within a group by descending logit.
    """
    tokens, experts = logits.shape
    per_group, picks = experts // groups, experts_per_token // groups
    z_TGn = logits.view(tokens, groups, per_group)
    if picks == 1:
        best_TGj = z_TGn.argmax(-1, keepdim=True)  # documented to return the first maximum
    else:
        # Not topk: it breaks ties arbitrarily.
        best_TGj = torch.sort(z_TGn, dim=-1, descending=True, stable=True).indices[..., :picks]
    first_of_group = torch.arange(0, experts, per_group, device=logits.device).view(1, groups, 1)
    return (best_TGj + first_of_group).flatten(1)


class _StraightThroughWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, ids)
        ctx.temperature = temperature
        return torch.softmax(logits.gather(-1, ids), dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, ids = ctx.saved_tensors
        p_TE = torch.softmax(logits / ctx.temperature, dim=-1)
        weighted_TK = p_TE.gather(-1, ids) * grads[0]
        d_TE = p_TE * -weighted_TK.sum(-1, keepdim=True)
        d_TE.scatter_add_(-1, ids, weighted_TK)
        return d_TE.div_(ctx.temperature), None, None


def router_weights(logits: Tensor, ids: Tensor, gradient: str, temperature: float = 1.0) -> Tensor:
    """Routing weights of the selected experts: the softmax over all experts renormalised over the selected ones.

    That ratio is the softmax over the selected logits alone, and is computed as such.

    Args:
        logits: [T, E] fp32 (fp64). ids: [T, K] distinct expert ids, int64.
        gradient: "ste" sends gradients through softmax(logits / temperature) over ALL experts,
            dL/dz_j = p_j (1[j selected] s_j - sum_selected p_i s_i) / temperature with s = dL/d weights;
            "conventional" is the derivative of the forward formula, exactly 0 for unselected experts.
        temperature: of the STE's softmax; the forward weights do not depend on it.
    Returns: [T, K] in the dtype of logits, each row sums to 1.
    Source: Intern-S1-Pro report, straight-through router estimator.
    """
    if gradient == "ste" and torch.is_grad_enabled():
        return _StraightThroughWeights.apply(logits, ids, temperature)
    return torch.softmax(logits.gather(-1, ids), dim=-1)
