"""The numerically sensitive operators of LMDeploy 0.18's PyTorch engine, restated in plain torch.

Each follows the published source in its dtypes and in the order of its roundings, not in its order of summation, which
belongs to a GPU's kernels. `tests/bench/test_rl_operators.py` compares them with LMDeploy's own code, its Triton
kernels in Triton's interpreter included.

Legend: T tokens · H hidden size · E experts · K experts per token · G router groups · d head dimension · n kv heads ·
V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3_MAX = 448.0
TILE = 128


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """kernels/cuda/rms_norm.py: squares, mean and product in fp32, one rounding at the end. [..., H]."""
    high = x.float()
    mean = high.square().sum(-1, keepdim=True) * (1.0 / x.shape[-1])
    return (weight.float() * (high * torch.rsqrt(mean + eps))).to(x.dtype)


def router_logits(x: Tensor, gate: Tensor) -> Tensor:
    """models/qwen3_moe.py, `gate`: a linear layer in the model's dtype. [T, H], [E, H] -> [T, E] bf16."""
    return F.linear(x, gate)


def route(logits: Tensor, groups: int, experts_per_token: int) -> tuple[Tensor, Tensor]:
    """backends/default/moe.py: softmax over all experts in fp32, then the largest probabilities of each group.
    [T, E] -> probabilities and ids [T, K], not normalised."""
    probabilities = torch.softmax(logits, -1, dtype=torch.float32)
    per_group = probabilities.unflatten(-1, (groups, -1))
    found, ids = torch.topk(per_group, experts_per_token // groups, dim=-1)
    first = torch.arange(groups, device=logits.device).view(1, -1, 1) * per_group.shape[-1]
    return found.flatten(-2), (ids + first).flatten(-2)


def renormalise(probabilities: Tensor) -> Tensor:
    """kernels/cuda/moe/fused_moe.py. [T, K]."""
    return probabilities / probabilities.sum(-1, keepdim=True)


def inverse_frequencies(theta: float, head_dim: int) -> Tensor:
    """backends/default/rotary_embedding.py. [d/2] fp32."""
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))


def rope_tables(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, sin [T, d/2]: angles in fp32, tables rounded to the activations' dtype."""
    angles = positions.float()[:, None] * frequencies[None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def fope_tables(
    positions: Tensor, frequencies: Tensor, cos_coef: Tensor, sin_coef: Tensor, pairs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos, sin [T, n, d/2]: waves mixed in fp32 by the matrices [n, D, D], padded with 1, rounded to `dtype`."""
    angles = positions.float()[:, None] * frequencies[None, : cos_coef.shape[-1]]

    def mixed(waves: Tensor, coefficients: Tensor) -> Tensor:
        found = torch.einsum("tD,hDd->thd", waves, coefficients.float())
        return F.pad(found, (0, pairs - found.shape[-1]), value=1.0).to(dtype)

    return mixed(angles.cos(), cos_coef), mixed(angles.sin(), sin_coef)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """kernels/cuda/apply_rotary_pos_emb.py: both products and their sum are rounded to x's dtype. [..., d] with tables
    that broadcast to [..., d/2]."""
    low, high = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """kernels/cuda/activation.py: silu in fp32, rounded, times up."""
    high = gate.float()
    return (high / (1 + torch.exp(-high))).to(gate.dtype) * up


def combine(outputs: Tensor, weights: Tensor) -> Tensor:
    """kernels/cuda/moe/fused_moe.py, `moe_reduce`: outputs [T, K, H] of the second matrix times rounded weights [T, K],
    rounded; their sum in fp32, rounded."""
    weighted = outputs * weights.to(outputs.dtype).unsqueeze(-1)
    return weighted.float().sum(1).to(outputs.dtype)


def log_probs(hidden: Tensor, head: Tensor, *, fp32_head: bool) -> Tensor:
    """models/utils/model.py and engine/logits_process.py: logits and their log-softmax in the head's dtype. [T, V]."""
    dtype = torch.float32 if fp32_head else hidden.dtype
    return F.linear(hidden.to(dtype), head.to(dtype)).log_softmax(-1)


def quantise_weight(weight: Tensor, scale_fmt: str | None) -> tuple[Tensor, Tensor]:
    """lite/quantization/weight/quant_utils.py: tiles of 128 x 128, codes [R, C] e4m3 and the scales that codes are
    multiplied by. scale_fmt: None: largest / 448; "ue8m0": the power of two at or above it."""
    tiles = weight.unflatten(-2, (-1, TILE)).unflatten(-1, (-1, TILE)).float()
    largest = tiles.abs().amax((-3, -1), keepdim=True).clamp_min(1e-6)
    scale = largest / E4M3_MAX
    if scale_fmt == "ue8m0":
        scale = _power_of_two_at_or_above(scale)
    codes = (tiles / scale).to(torch.float8_e4m3fn).view(weight.shape)
    return codes, scale.squeeze(-3, -1)


def quantise_activation(x: Tensor, scale_fmt: str | None) -> tuple[Tensor, Tensor]:
    """kernels/cuda/blocked_gemm_fp8.py: tiles of 1 x 128, [T, H] -> codes e4m3, scales [T, H/128]. The largest number
    is multiplied by fl32(1 / 448)."""
    tiles = x.unflatten(-1, (-1, TILE))
    largest = tiles.abs().amax(-1, keepdim=True).clamp_min(1e-6).float()
    scale = largest * torch.tensor(1 / E4M3_MAX, dtype=torch.float32)
    if scale_fmt == "ue8m0":
        scale = _power_of_two_at_or_above(scale)
        inverse = 1 / scale
    else:
        inverse = torch.full_like(largest, E4M3_MAX) / largest
    codes = (tiles.float() * inverse).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.flatten(-2), scale.squeeze(-1)


def _power_of_two_at_or_above(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    exponent = ((bits >> 23) & 0xFF) + ((bits & 0x7FFFFF) != 0)
    return (exponent.to(torch.int32) << 23).view(torch.float32)
