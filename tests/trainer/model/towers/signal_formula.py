"""The time-series tower as formulas in fp64, written out step by step, to compare the module with.

Source: section 5 of the facts about the models, from a serving engine's code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Weights = Mapping[str, Tensor]  # fp64, under published names without `model.time_series.`


def signal_formula(w: Weights, signal: Tensor, rate: float, heads: int, patch_heads: int) -> Tensor:
    """signal: [T, C], not normalised -> [tokens, H]."""
    signal = (signal - signal.mean(0)) / (signal.std(0, correction=0) + 1e-8)
    signal = signal[:240_000]
    S = int(np.floor(np.float32(160) / (np.float32(1) + np.exp(np.float32(-rate) / np.float32(100))) ** 6))
    T, P = len(signal), 2 * S
    n = math.ceil((T - P) / S) + 1
    padded = torch.cat([signal, signal.new_zeros((n - 1) * S + P - T, signal.shape[1])])
    vectors = torch.stack([encode_patch(w, padded[i * S : i * S + P], patch_heads) for i in range(n)])
    pairs = torch.cat([vectors[0 : n // 2 * 2 : 2], vectors[1::2]], dim=1)
    x = linear(w, "encoder.adapt_in", pairs)
    x = gelu(convolve(w, "encoder.conv1", x))
    x = gelu(convolve(w, "encoder.conv2", x)[::2])
    table = w["encoder.embed_positions.weight"]
    known = min(len(x), len(table))
    x = torch.cat([x[:known] + table[:known], x[known:]])
    count = len({name.split(".")[2] for name in w if name.startswith("encoder.layers.")})
    for number in range(count):
        at = f"encoder.layers.{number}"
        y = layer_norm(w, f"{at}.self_attn_layer_norm", x)
        k = y @ w[f"{at}.self_attn.k_proj.weight"].T
        q, v = linear(w, f"{at}.self_attn.q_proj", y), linear(w, f"{at}.self_attn.v_proj", y)
        x = x + linear(w, f"{at}.self_attn.out_proj", attention(q, k, v, heads, causal=True))
        y = layer_norm(w, f"{at}.final_layer_norm", x)
        x = x + linear(w, f"{at}.fc2", gelu(linear(w, f"{at}.fc1", y)))
    x = linear(w, "encoder.adapt_out", layer_norm(w, "encoder.layer_norm", x))
    x = layer_norm(w, "projector.layer_norm", x)
    return linear(w, "projector.linear_2", gelu(linear(w, "projector.linear_1", x)))


def encode_patch(w: Weights, patch: Tensor, heads: int) -> Tensor:
    """[P, C] -> [w]: the mean over channels of each channel's mean over steps.

    The published code takes for channel c the values c P to (c + 1) P - 1 of the patch, read step by step.
    """
    P, C = patch.shape
    at = "encoder_embed"
    layer = f"{at}.transformer_encoder.layers.0"
    means = []
    for channel in patch.flatten().split(P):
        x = convolve(w, f"{at}.conv", channel[:, None]).clamp(min=0) + sines(P, w[f"{at}.conv.bias"].numel())
        q, k, v = (x @ w[f"{layer}.self_attn.in_proj_weight"].T + w[f"{layer}.self_attn.in_proj_bias"]).chunk(3, dim=1)
        x = layer_norm(w, f"{layer}.norm1", x + linear(w, f"{layer}.self_attn.out_proj", attention(q, k, v, heads)))
        y = linear(w, f"{layer}.linear2", linear(w, f"{layer}.linear1", x).clamp(min=0))
        means.append(layer_norm(w, f"{layer}.norm2", x + y).mean(0))
    assert len(means) == C
    return torch.stack(means).mean(0)


def sines(rows: int, width: int) -> Tensor:
    """[rows, width]: sin and cos of row * 10000^(-2i / width), in turn."""
    angles = torch.arange(rows).double()[:, None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def convolve(w: Weights, name: str, x: Tensor) -> Tensor:
    """x: [steps, in] -> [steps, out], zeros beyond both ends."""
    kernel = w[f"{name}.weight"]  # [out, in, taps]
    taps, steps = kernel.shape[-1], len(x)
    edge = x.new_zeros(taps // 2, x.shape[1])
    padded = torch.cat([edge, x, edge])
    return sum(padded[t : t + steps] @ kernel[:, :, t].T for t in range(taps)) + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """q, k, v: [s, h d] -> [s, h d]."""
    q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
