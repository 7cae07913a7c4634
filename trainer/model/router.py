"""The grouped router: the best K/G experts of each of G groups, weighted by a renormalised softmax.

Legend: T tokens · E experts · G router groups · n = E/G experts a group · K experts per token · j = K/G of each group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.torch_private import assert_async
from trainer.config.model import ModelConfig
from trainer.model.numerics import router_weights, wide
from trainer.model.ops import TORCH, Ops


class RouterStats(NamedTuple):
    """Statistics of one micro-batch for the losses and the log, of one layer or with a leading layer dimension.

    counts: [E] selections per expert, no gradient. probabilities: [E] sums over tokens of the router's probabilities
    (within each group, or over all experts, as `model.balance` says), carries gradients. log_z_squared: [] sum over
    tokens of logsumexp(logits)^2, carries gradients where the z loss is on. tokens: number of tokens routed.
    """

    counts: Tensor
    probabilities: Tensor
    log_z_squared: Tensor
    tokens: int

    @staticmethod
    def stack(layers: list[RouterStats]) -> RouterStats:
        """Statistics with a leading layer dimension, from layers that routed the same tokens; differentiable."""
        return RouterStats(
            torch.stack([s.counts for s in layers]),
            torch.stack([s.probabilities for s in layers]),
            torch.stack([s.log_z_squared for s in layers]),
            layers[0].tokens,
        )


class Selection:
    """The experts that a router selects in the first pass of its block, which passes that recompute the block from a
    rounded input repeat: scores that are nearly equal may change places.

    ids: [T, K] int32; None before the first pass.
    """

    def __init__(self) -> None:
        self.ids: Tensor | None = None

    def repeat(self, select: Callable[[], Tensor]) -> Tensor:
        """select: returns [T, K] int64, and is called in the first pass only."""
        if self.ids is None:
            self.ids = select().to(torch.int32)
        return self.ids.long()


class Router(nn.Module):
    """Logits in fp32 from one matrix [E, H], K/G experts of each group, their weights and the statistics of both."""

    def __init__(self, cfg: ModelConfig, ops: Ops = TORCH) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(cfg.num_experts, cfg.hidden_size))
        self.groups = cfg.router_groups
        self.experts_per_token = cfg.experts_per_token
        self.gradient = cfg.router_gradient
        self.temperature = cfg.router_temperature
        self.balance = cfg.balance
        self.z_loss = cfg.z_loss_coef > 0

    def forward(self, x: Tensor, ids: Tensor | Selection | None = None) -> tuple[Tensor, Tensor, RouterStats]:
        """x: [T, H] -> ids [T, K] int64, weights [T, K] fp32, statistics.

        With `ids` of a rollout or an earlier pass the router only weighs them. Raises RuntimeError if one of a
        rollout is out of range; on CUDA at a later synchronisation.
        """
        if isinstance(ids, Tensor):
            assert_async(((ids >= 0) & (ids < len(self.weight))).all(), "expert_ids are out of range")
        z_TE = self.logits(x)
        if ids is None:
            ids, weights_TK = self.route(z_TE)
        else:
            if isinstance(ids, Selection):
                ids = ids.repeat(lambda: self.route(z_TE.detach())[0])
            weights_TK = router_weights(z_TE, ids, self.gradient, self.temperature)
        return ids, weights_TK, self._statistics(z_TE, ids)

    def logits(self, x: Tensor) -> Tensor:
        """x: [T, H] -> [T, E] in fp32 (fp64)."""
        dtype = wide(x.dtype)
        return self.ops.linear(x.to(dtype), self.weight.to(dtype))

    def route(self, z_TE: Tensor) -> tuple[Tensor, Tensor]:
        """The logits' experts [T, K] int64 and their weights [T, K]."""
        return self.ops.route(z_TE, self.groups, self.experts_per_token, self.gradient, self.temperature)

    def _statistics(self, z_TE: Tensor, ids: Tensor) -> RouterStats:
        tokens, experts = z_TE.shape
        groups = self.groups if self.balance == "group" else 1
        # Tokens innermost: a softmax over a short last dimension runs on a few numbers at a time.
        p_GnT = torch.softmax(z_TE.t().contiguous().view(groups, -1, tokens), dim=1)
        chosen = ids.flatten()
        counts = torch.zeros(experts, dtype=z_TE.dtype, device=ids.device)
        counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=z_TE.dtype))
        log_z = torch.logsumexp(z_TE if self.z_loss else z_TE.detach(), dim=-1)
        return RouterStats(counts, p_GnT.flatten(0, 1).sum(-1), log_z.square().sum(), tokens)
