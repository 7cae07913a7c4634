"""The work of one expert-parallel rank of the 1T model: its sizes, and which tokens go to which expert.

Legend: T tokens · K experts per token · G router groups · E experts · n = E/G experts a group · H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.model.numerics import select_experts
from trainer.model.ops import TORCH, Ops

Skew = Literal["uniform", "zipf"]


@dataclass(frozen=True)
class Slice:
    """The experts of one rank of `model=intern_s1_pro` at `parallel.ep=8`: as many, and as many rows for each token of
    the rank, as all 512 experts spread over eight ranks come to. Here they are 8 groups of their own."""

    hidden: int = 4096
    width: int = 1536
    experts: int = 64
    groups: int = 8
    per_token: int = 8
    heads: int = 64
    kv_heads: int = 4
    head_dim: int = 128

    def config(self, **options: object) -> ModelConfig:
        return ModelConfig(
            vocab_size=8, hidden_size=self.hidden, num_layers=1, num_heads=self.heads, num_kv_heads=self.kv_heads,
            head_dim=self.head_dim, num_experts=self.experts, expert_width=self.width, router_groups=self.groups,
            experts_per_token=self.per_token, **options,
        )  # fmt: skip

    def expert_flops(self, tokens: int) -> int:
        """Forward FLOPs of the experts' three matrices, 2 a multiply-add, padding not counted; backward has twice as
        many."""
        return 2 * 3 * self.hidden * self.width * tokens * self.per_token

    def decoder_layer_flops(self, tokens: int, document: int) -> int:
        """Forward FLOPs of a whole layer: attention's projections, its causal scores and values in documents of
        `document` tokens (a mean span of (document + 1) / 2), the router and the experts."""
        projections = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        scores = 2 * self.heads * self.head_dim * (document + 1) // 2
        router = self.hidden * self.experts
        return 2 * tokens * (projections + scores + router) + self.expert_flops(tokens)


@dataclass(frozen=True)
class Size:
    """One case to measure."""

    part: Slice
    tokens: int
    skew: Skew
    dtype: torch.dtype
    device: torch.device
    ops: Ops = TORCH  # for our own arms

    def ids(self) -> Tensor:
        """[T, K] the experts of each token."""
        logits = draw_logits(self.part, self.tokens, self.skew)
        return select_experts(logits, self.part.groups, self.part.per_token).to(self.device)


def shares(skew: Skew, per_group: int) -> Tensor:
    """[n] share of a group's selections by rank. zipf: rank r gets (1/r) / (1 + 1/2 + ... + 1/n); of 8 experts the
    first gets 36.8 %, 2.94 times its fair share, and the last 4.6 %."""
    rank = torch.arange(1, per_group + 1, dtype=torch.float64)
    weight = torch.ones_like(rank) if skew == "uniform" else 1 / rank
    return weight / weight.sum()


def draw_logits(part: Slice, tokens: int, skew: Skew, seed: int = 0) -> Tensor:
    """[T, E] fp64 router logits whose largest of each group falls on an expert with probability `shares`.

    log(share) plus Gumbel noise has just that maximum. Which expert of a group has which rank is drawn too. From a
    generator on the CPU, so that every machine routes alike.
    """
    generator = torch.Generator().manual_seed(seed)
    per_group = part.experts // part.groups
    rank_Gn = torch.stack([torch.randperm(per_group, generator=generator) for _ in range(part.groups)])
    uniform = torch.rand(tokens, part.experts, generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
    return gumbel + shares(skew, per_group).log()[rank_Gn].flatten()


def plant(x: Tensor, router: Tensor, logits: Tensor) -> Tensor:
    """x [T, H] changed as little as can be so that a router of weights [E, H] gives `logits` [T, E]; E of H dimensions
    move. Rounding x to its dtype afterwards moves the logits by about 1e-3 in bf16."""
    wide, weight = x.double(), router.double()
    missing = logits.to(wide) - wide @ weight.T
    return (wide + missing @ torch.linalg.pinv(weight).T).to(x.dtype)
