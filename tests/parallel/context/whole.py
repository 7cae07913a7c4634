"""Attention of several ranks put together, and what one process computes of the same sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.context.base import AttentionCore, Documents
from parallel.context.ring import RingAttention
from parallel.context.share import take
from parallel.context.slices import Kind, slices
from parallel.context.ulysses import UlyssesAttention
from parallel.simulate import Collective, CollectiveLog
from trainer.model.attention import document_attention

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """Lengths of the documents of one sequence, and the heads that attend inside them."""

    lengths: tuple[int, ...]
    heads: int = 12
    kv_heads: int = 2
    head_dim: int = 8

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """q, k, v of the whole sequence and the gradient of the result."""
        source = torch.Generator().manual_seed(self.tokens)
        heads = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        return [torch.randn(self.tokens, n, self.head_dim, generator=source).to(dtype) for n in heads]


class Result(NamedTuple):
    y: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


class OfRank(NamedTuple):
    result: Result
    calls: list[Collective]


def core_of(kind: Kind) -> AttentionCore:
    group = dist.group.WORLD
    return RingAttention(group) if kind == "ring" else UlyssesAttention(group, document_attention)


def run(attend: Any, case: Case, inputs: list[Tensor]) -> Result:
    q, k, v = (x.requires_grad_() for x in inputs[:3])
    y = attend(q, k, v, Documents.of_lengths(list(case.lengths), CPU))
    return Result(y.detach(), *torch.autograd.grad(y, (q, k, v), inputs[3]))


def run_rank(kind: Kind, cases: list[tuple[Case, torch.dtype]]) -> list[OfRank]:
    """On each rank of an initialised world."""
    core, rank, found = core_of(kind), dist.get_rank(), []
    for case, dtype in cases:
        pieces = slices(kind, case.tokens, core.ranks)[rank]
        with CollectiveLog([("cp", dist.group.WORLD)]) as log:
            result = run(core, case, [take(x, pieces) for x in case.inputs(dtype)])
        found.append(OfRank(result, log.calls))
    return found


def joined(kind: Kind, case: Case, by_rank: list[OfRank]) -> Result:
    """The whole sequence's from the ranks' parts."""
    order = torch.cat([torch.tensor(list(p)) for pieces in slices(kind, case.tokens, len(by_rank)) for p in pieces])
    parts = [torch.cat(of_ranks) for of_ranks in zip(*(found.result for found in by_rank), strict=True)]
    return Result(*(torch.empty_like(part).index_copy_(0, order, part) for part in parts))


def reference(case: Case) -> Result:
    return run(document_attention, case, case.inputs(torch.float64))
