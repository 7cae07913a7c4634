"""Grouped-query attention with per-head q/k RMSNorm, rotary positions and packed documents.

Legend: T tokens · h query heads · n kv heads · d head dimension · H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.context.base import AttentionCore, Documents
from trainer.config.model import ModelConfig
from trainer.model.exact.blocks import KEYS
from trainer.model.exact.short import short_documents
from trainer.model.numerics import norm_rotary
from trainer.model.ops import TORCH, Ops

MANY = 16  # short documents that are attended to together


@cache
def _varlen_arguments() -> tuple[Any, dict[str, Any], bool]:
    """torch's variable-length attention, its arguments for causal attention, and True if it takes grouped queries."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    grouped = "enable_gqa" in names
    return varlen_attn, causal | ({"enable_gqa": True} if grouped else {}), grouped


@torch.compiler.disable
def document_attention(q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
    """Causal attention inside each document.

    Args: q: [T, h, d]; k, v: [T, n, d] with n dividing h; query head i reads kv head i // (h/n).
    Returns: [T, h, d]. On CUDA in 16 bits one varlen kernel; otherwise SDPA over the documents, in one call if all
    have the same length, and in one for those of similar lengths where many are short. Never a dense mask.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        varlen_attn, arguments, grouped = _varlen_arguments()
        if not grouped:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        longest = max(docs.lengths)
        return varlen_attn(q, k, v, docs.cu_seqlens, docs.cu_seqlens, longest, longest, **arguments)
    if len(set(docs.lengths)) == 1:
        q, k, v = (x.view(len(docs.lengths), docs.lengths[0], *x.shape[1:]) for x in (q, k, v))
        return _causal(q, k, v).flatten(0, 1)
    if sum(length <= KEYS for length in docs.lengths) >= MANY:
        return _many(q, k, v, docs)
    parts = zip(*(x.unsqueeze(0).split(docs.lengths, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([_causal(*part) for part in parts], dim=1).squeeze(0)


def _many(q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
    """`document_attention` where documents are so short that a call for each would take longer than its arithmetic:
    short ones are filled up at their ends, which none of their tokens sees."""
    parts, tokens = list[Tensor](), list[Tensor]()
    for some in short_documents(docs.lengths, q.shape[1], q.device):
        parts.append(some.take(_causal(*(some.fill(x) for x in (q, k, v)))))
        tokens.append(some.tokens)
    for start, end in pairwise(docs.bounds):
        if end - start > KEYS:
            parts.append(_causal(*(x[start:end].unsqueeze(0) for x in (q, k, v))).squeeze(0))
            tokens.append(torch.arange(start, end, device=q.device))
    return torch.cat(parts).index_select(0, torch.cat(tokens).argsort())


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, S, h, d], k and v [B, S, n, d] -> [B, S, h, d]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


class DocumentAttention:
    """The attention core of a rank that has all tokens: `document_attention`."""

    ranks = 1

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        return document_attention(q, k, v, docs)


# (ops, x [T, M], weight [N, M] as it is stored) -> [T, N]
Linear = Callable[[Ops, Tensor, Tensor], Tensor]


def plain_linear(ops: Ops, x: Tensor, weight: Tensor) -> Tensor:
    """A projection in the dtype of x."""
    return ops.linear(x, weight.to(x.dtype))


class Attention(nn.Module):
    """Weights: qkv [(h + 2n) d, H], rows in the order q heads, k heads, v heads; out [H, h d]; q_norm, k_norm [d].

    core: the attention core (`parallel.context.base`); `parallelize` replaces it where ranks share a sequence. into,
    out_of: the projections; `trainer.model.lora` replaces them.
    """

    def __init__(self, cfg: ModelConfig, ops: Ops = TORCH) -> None:
        super().__init__()
        self.ops = ops
        self.heads, self.kv_heads, self.head_dim, self.eps = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.norm_eps
        self.qkv = nn.Parameter(torch.empty((self.heads + 2 * self.kv_heads) * self.head_dim, cfg.hidden_size))
        self.out = nn.Parameter(torch.empty(cfg.hidden_size, self.heads * self.head_dim))
        self.q_norm = nn.Parameter(torch.empty(self.head_dim))
        self.k_norm = nn.Parameter(torch.empty(self.head_dim))
        self.core: AttentionCore = DocumentAttention()
        self.into: Linear = plain_linear
        self.out_of: Linear = plain_linear

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, docs: Documents) -> Tensor:
        """x: [T, H]; cos, sin: [T, n or 1, 1, d/2] -> [T, H]."""
        return self.leave(self.core(*self.enter(x, cos, sin), docs))

    def enter(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of the core: q [T, h, d]; k, v [T, n, d]."""
        h, n, d = self.heads, self.kv_heads, self.head_dim
        q, k, v = self.into(self.ops, x, self.qkv).split([h * d, n * d, n * d], dim=-1)
        q = norm_rotary(q.unflatten(-1, (n, h // n, d)), self.q_norm, cos, sin, self.eps)
        k = norm_rotary(k.unflatten(-1, (n, 1, d)), self.k_norm, cos, sin, self.eps)
        return q.flatten(1, 2), k.flatten(1, 2), v.unflatten(-1, (n, d))

    def leave(self, y_Thd: Tensor) -> Tensor:
        """The core's result -> [T, H]."""
        return self.out_of(self.ops, y_Thd.flatten(1), self.out)
