"""Attention of some queries to some keys with its log-sum-exp, forward and backward, and how such parts are merged.

Softmax over keys that are seen in parts: each part gives o_i and L_i = log sum exp(scores); the whole is
L = log sum_i exp(L_i) and o = sum_i exp(L_i - L) o_i. In backward the probabilities of a part are exp(scores - L), and
the inner products of o and its gradient are the whole's: each part's kernel gets the merged o and L.

On CUDA in 16 bits torch's varlen flash kernel, on a CPU torch's flash kernel for one document after another.

Legend: x queries · y keys · h query heads · n kv heads · d head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.context.base import Documents
from parallel.torch_private import flash_for_cpu, flash_for_cpu_backward, flash_varlen, flash_varlen_backward


def attend(q: Tensor, k: Tensor, v: Tensor, docs: Documents | None = None) -> tuple[Tensor, Tensor]:
    """Every query attends to every key; with `docs`, which cut queries and keys alike, causally inside each document.

    Args: q: [x, h, d]; k, v: [y, n, d].
    Returns: o [x, h, d] in the dtype of q; log-sum-exp [h, x] in fp32 (fp64 for fp64).
    """
    causal = docs is not None
    if q.is_cuda:
        return flash_varlen(q, k, v, *_varlen_bounds(q, k, docs), causal)
    by_document = zip(*(_by_document(x, docs, dim=0) for x in (q, k, v)), strict=True)
    outs, sums = zip(*(flash_for_cpu(q, k, v, causal) for q, k, v in by_document), strict=True)
    return torch.cat(outs, dim=2).squeeze(0).transpose(0, 1), torch.cat(sums, dim=2).squeeze(0)


def attend_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, docs: Documents | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. y, lse: the merged result and log-sum-exp of these queries over all of their keys."""
    causal = docs is not None
    if q.is_cuda:
        bounds = _varlen_bounds(q, k, docs)
        return flash_varlen_backward(dy, q, k, v, y, lse.contiguous(), *bounds, causal)
    by_document = zip(
        *(_by_document(x, docs, dim=0) for x in (dy, q, k, v, y)), _by_document(lse, docs, dim=1), strict=True
    )
    grads = [flash_for_cpu_backward(dy, q, k, v, y, lse, causal) for dy, q, k, v, y, lse in by_document]
    dq, dk, dv = (torch.cat(x, dim=2).squeeze(0).transpose(0, 1) for x in zip(*grads, strict=True))
    return dq, dk, dv


def merge(y: Tensor, lse: Tensor, part_y: Tensor, part_lse: Tensor) -> None:
    """Take another part of the keys into y [x, h, d] and lse [h, x], in place. y must be in the dtype of lse."""
    both = torch.logaddexp(lse, part_lse)
    y.mul_(torch.exp(lse - both).t().unsqueeze(-1))
    y.addcmul_(part_y.to(y.dtype), torch.exp(part_lse - both).t().unsqueeze(-1))
    lse.copy_(both)


def _varlen_bounds(q: Tensor, k: Tensor, docs: Documents | None) -> tuple[Tensor, Tensor, int, int]:
    if docs is not None:
        longest = max(docs.lengths)
        return docs.cu_seqlens, docs.cu_seqlens, longest, longest
    bounds = [Documents.rows(1, len(x), x.device).cu_seqlens for x in (q, k)]
    return bounds[0], bounds[1], len(q), len(k)


def _by_document(x: Tensor, docs: Documents | None, dim: int) -> list[Tensor]:
    """[x, h, d] -> [1, h, x, d] of each document, or [h, x] -> [1, h, x]."""
    heads_first = x.transpose(0, 1) if dim == 0 else x
    whole = heads_first.unsqueeze(0)
    return [whole] if docs is None else list(whole.split(docs.lengths, dim=2))
