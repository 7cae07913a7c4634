"""Attention by blocks of keys in a fixed order, equal bits for a training batch and for one query after another.

Queries are multiplied with one block of `KEYS` keys at a time, in blocks of a fixed number of rows. The largest score
of a query is found first, which no order changes; exponentials are added up within a block, and blocks in the order of
their positions. A block that a query does not see adds zero.

Legend: S tokens of a document · n kv heads · r query heads of each · d head dimension · C queries of a block ·
R = C*r rows of a block · b blocks of queries · J blocks of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.context.base import Documents
from trainer.model.attention import document_attention
from trainer.model.exact import compiled
from trainer.model.exact.blocks import KEYS, QUERY_ROWS
from trainer.model.exact.compiled import compiles
from trainer.model.exact.short import attend_short, short_documents
from trainer.model.numerics import wide

CHUNK = 512  # queries whose scores are in memory at one time


def queries_of_block(heads: int) -> int:
    """C, for r heads that share keys."""
    return -(-QUERY_ROWS // heads)


def attend(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], start: int) -> Tensor:
    """Causal attention of consecutive queries of one document; outside autograd.

    Args: q: [S, n, r, d], the first at position `start`. keys, values: J blocks [n, KEYS, d] from position 0 on, as
        far as the last query; what is behind it must be finite.
    Returns: [S, n, r, d] in the dtype of q.
    """
    parts = [_attend(q[first : first + CHUNK], keys, values, start + first) for first in range(0, len(q), CHUNK)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], start: int) -> Tensor:
    tokens, heads, shared, width = q.shape
    per_block, dtype = queries_of_block(shared), wide(q.dtype)
    q = F.pad(q.to(dtype) * width**-0.5, (0, 0, 0, 0, 0, 0, 0, -tokens % per_block))
    q_nbRd = q.unflatten(0, (-1, per_block)).permute(2, 0, 1, 3, 4).reshape(heads, -1, per_block * shared, width)
    blocks = q_nbRd.shape[1]
    position_bR = start + torch.arange(blocks * per_block, device=q.device).repeat_interleave(shared).view(blocks, -1)
    scores: list[Tensor] = []
    seen_from: list[int] = []
    top = q.new_full((*q_nbRd.shape[:3], 1), -torch.inf)
    for number in range(-(-(start + tokens) // KEYS)):
        first = max(0, number * KEYS - start) // per_block  # the first block with a query that sees these keys
        found = q.new_empty(heads, blocks - first, per_block * shared, KEYS)
        _each_head(q_nbRd[:, first:], keys[number].to(dtype).mT, found)
        last = min(blocks, max(0, (number + 1) * KEYS - start) // per_block + 1)  # later ones see all of these keys
        behind = torch.arange(number * KEYS, (number + 1) * KEYS, device=q.device) > position_bR[first:last].unsqueeze(
            -1
        )
        found[:, : last - first].masked_fill_(behind, -torch.inf)
        top[:, first:] = torch.maximum(top[:, first:], found.amax(-1, keepdim=True))
        scores.append(found)
        seen_from.append(first)
    total, y_nbRd = torch.zeros_like(top), torch.zeros_like(q_nbRd)
    for number, (found, first) in enumerate(zip(scores, seen_from, strict=True)):
        weights = found.sub_(top[:, first:]).exp_()
        total[:, first:] += weights.sum(-1, keepdim=True)
        part = torch.empty_like(q_nbRd[:, first:], memory_format=torch.contiguous_format)
        _each_head(weights, values[number].to(dtype), part)
        y_nbRd[:, first:] += part
    y = (y_nbRd / total).view(heads, blocks, per_block, shared, width).permute(1, 2, 0, 3, 4)
    return y.flatten(0, 1)[:tokens].to(keys[0].dtype)


def _each_head(left_nbRm: Tensor, right_nml: Tensor, out: Tensor) -> None:
    for left, right, found in zip(left_nbRm, right_nml, out, strict=True):
        torch.bmm(left, right.expand(len(left), -1, -1), out=found)


class ExactAttention:
    """The attention core of a rank that has all tokens, in exact mode."""

    ranks = 1

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        found: Tensor = _DocumentAttention.apply(q, k, v, docs)
        return found


class _DocumentAttention(torch.autograd.Function):
    """`attend` for each document, or `attend_short` for many. Backward: of `document_attention`, computed anew."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.docs = docs
        if compiles(q) and k.dtype is torch.float32:
            return _compiled(q, k, v, docs.lengths)
        y, q = torch.empty_like(q), q.unflatten(1, (k.shape[1], -1))
        for some in short_documents(docs.lengths, q.shape[1] * q.shape[2], q.device):
            found = attend_short(some.fill(q), some.fill(k), some.fill(v))
            y.index_copy_(0, some.tokens, some.take(found).flatten(1, 2))
        for at in _long(docs.lengths):
            y[at] = attend(q[at], _key_blocks(k[at]), _key_blocks(v[at]), 0).flatten(1, 2)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        docs, parts, of_parts = ctx.docs, list[Tensor](), list[Tensor]()
        if min(docs.lengths) > KEYS:
            with torch.enable_grad():
                y = document_attention(*leaves, docs)
            d_q, d_k, d_v = torch.autograd.grad(y, leaves, grads[0])
            return d_q, d_k, d_v, None
        with torch.enable_grad():
            for some in short_documents(docs.lengths, leaves[0].shape[1], grads[0].device):
                padded = Documents.rows(some.documents, some.longest, grads[0].device)
                y = document_attention(*(some.fill(x).flatten(0, 1) for x in leaves), padded)
                parts.append(y.index_select(0, some.places))
                of_parts.append(grads[0].index_select(0, some.tokens))
            for at in _long(docs.lengths):
                alone = Documents.rows(1, at.stop - at.start, grads[0].device)
                parts.append(document_attention(*(x[at] for x in leaves), alone))
                of_parts.append(grads[0][at])
        d_q, d_k, d_v = torch.autograd.grad(parts, leaves, of_parts)
        return d_q, d_k, d_v, None


def _compiled(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each document is one page."""
    (tokens, heads, width), sizes = k.shape, torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    table = torch.arange(len(sizes)).repeat_interleave(sizes)
    seen = torch.arange(1, tokens + 1) - starts.index_select(0, table)
    memory = k.contiguous(), v.contiguous(), starts * (heads * width), table, seen
    return compiled.attend(q, *memory, max(1, *lengths), (width, heads * width))


def _long(lengths: Sequence[int]) -> list[slice]:
    """The tokens of each document that one block of keys does not hold."""
    ends = accumulate(lengths)
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True) if length > KEYS]


def _key_blocks(x: Tensor) -> list[Tensor]:
    """[S, n, d] -> J blocks [n, KEYS, d], filled up with zeros."""
    padded = F.pad(x, (0, 0, 0, 0, 0, -len(x) % KEYS))
    return list(padded.unflatten(0, (-1, KEYS)).transpose(1, 2).contiguous())
