"""Adapters beside attention's projections.

Legend: T tokens · M inputs · N outputs · r rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.attention import Linear
from trainer.model.ops import Ops


class Adapter(nn.Module):
    """x -> scale * B A x, with a [r, M] and b [N, r]. dropout: share of x that is set to zero, and the rest scaled up,
    where gradients are recorded."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.empty(outputs, rank))
        self.scale, self.dropout = scale, dropout

    def forward(self, ops: Ops, x: Tensor) -> Tensor:
        """x: [T, M] -> [T, N]."""
        if self.dropout and torch.is_grad_enabled():
            x = F.dropout(x, self.dropout)
        return ops.linear(ops.linear(x, self.a.to(x.dtype)), self.b.to(x.dtype)) * self.scale


class AdaptedLinear(nn.Module):
    """A frozen projection with adapters beside it, each for some of its outputs; in the place of `plain_linear`.

    base: the frozen projection. parts: name -> number of outputs, in the order of the matrix's rows; all together are
    all of its rows.
    """

    def __init__(
        self,
        base: Linear,
        inputs: int,
        parts: Mapping[str, int],
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict(
            {name: Adapter(inputs, outputs, rank, scale, dropout) for name, outputs in parts.items()}
        )

    def forward(self, ops: Ops, x: Tensor, weight: Tensor) -> Tensor:
        """x: [T, M]; weight: [N, M] -> [T, N]."""
        beside = [adapter(ops, x) for adapter in self.adapters.values()]
        return self.base(ops, x, weight) + torch.cat(beside, dim=-1)
