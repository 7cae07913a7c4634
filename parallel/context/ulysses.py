"""Context parallelism by heads (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509).

Each rank holds a slice of the sequence with all heads. One all-to-all gives it the whole sequence of h/c query heads
and of the kv heads that they read; any attention for one rank runs there; another all-to-all brings the results back.
Backward mirrors both. With fewer kv heads than ranks each kv head goes to several ranks, and the gradients of its
copies are added where it came from.

Bytes that a rank sends forward, for q, k, v and o of the whole sequence: (c-1)/c^2 * (q + o + (k + v) max(1, c/n)), and
as many backward.

Legend: c ranks · T tokens on this rank · W tokens of all ranks · h query heads · n kv heads · d head dimension ·
a heads that travel to one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.base import Documents
from parallel.context.slices import divides, slices
from parallel.dispatch.collectives import start_all_to_all


class UlyssesAttention:
    """Attention core for the ranks of `group`, which hold the slices of kind "ulysses".

    Args: whole: attention on one rank, as `AttentionCore.__call__`, over the whole sequence and some of the heads.
    """

    def __init__(self, group: dist.ProcessGroup, whole: Callable[[Tensor, Tensor, Tensor, Documents], Tensor]) -> None:
        self.group, self.whole = group, whole

    @property
    def ranks(self) -> int:
        return self.group.size()

    @torch.compiler.disable
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, docs: Documents) -> Tensor:
        """Implements `AttentionCore`. Raises ValueError where `divides` is False or T is not this rank's slice."""
        ranks, tokens = self.ranks, sum(docs.lengths)
        if not divides(q.shape[1], k.shape[1], ranks):
            raise ValueError(f"{ranks} ranks cannot share {q.shape[1]} query heads of {k.shape[1]} kv heads")
        rows = [sum(map(len, pieces)) for pieces in slices("ulysses", tokens, ranks)]
        if len(q) != rows[self.group.rank()]:
            raise ValueError(
                f"this rank has {len(q)} tokens, but {rows[self.group.rank()]} of the {tokens} are its own"
            )
        exchange = _Exchange(self.group, rows, [q.shape[1], k.shape[1], v.shape[1]])
        q, k, v = _ToHeads.apply(q, k, v, exchange)
        return _ToTokens.apply(self.whole(q, k, v, docs), exchange)


class _Exchange:
    """The transfers of one call. rows: tokens of each rank. heads: of q, k and v."""

    def __init__(self, group: dist.ProcessGroup, rows: list[int], heads: list[int]) -> None:
        self.group, self.rows, self.heads = group, rows, heads
        self.here = [rows[group.rank()]] * group.size()

    def to_heads(self, *parts: Tensor) -> list[Tensor]:
        """Each [T, heads, d] -> [W, heads of this rank, d]."""
        ranks = self.group.size()
        columns = [max(1, part.shape[1] // ranks) for part in parts]
        packed = parts[0].new_empty(ranks, len(parts[0]), sum(columns), parts[0].shape[2])
        for target, part in zip(packed.split(columns, dim=2), parts, strict=True):
            copies = max(1, ranks // part.shape[1])
            part = part.repeat_interleave(copies, dim=1) if copies > 1 else part
            target.copy_(part.unflatten(1, (ranks, -1)).transpose(0, 1))
        received = start_all_to_all(packed.flatten(0, 1), self.group, self.here, self.rows).wait()
        return list(received.split(columns, dim=1))

    def to_tokens(self, heads: list[int], *parts: Tensor) -> list[Tensor]:
        """Each [W, heads of this rank, d] -> [T, heads, d], copies of a kv head added. heads: of each part."""
        ranks = self.group.size()
        sent = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        received = start_all_to_all(sent, self.group, self.rows, self.here).wait()
        results = []
        by_rank = received.unflatten(0, (ranks, -1)).split([part.shape[1] for part in parts], dim=2)
        for count, part in zip(heads, by_rank, strict=True):
            if count < ranks:  # rank r has a copy of head r // (ranks / heads)
                high = torch.promote_types(part.dtype, torch.float32)
                part = part.unflatten(0, (count, -1)).sum(1, dtype=high).to(part.dtype)
            results.append(part.transpose(0, 1).flatten(1, 2))
        return results


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, exchange: _Exchange) -> tuple[Tensor, ...]:
        ctx.exchange = exchange
        return tuple(exchange.to_heads(q, k, v))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.exchange.to_tokens(ctx.exchange.heads, *grads), None)


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, exchange: _Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.to_tokens(exchange.heads[:1], y)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.to_heads(grads[0])[0], None
