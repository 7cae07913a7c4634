"""The mixture-of-experts block: a router, experts, and the dispatcher between them."""

from __future__ import annotations

from torch import Tensor, nn

from parallel.dispatch.base import Dispatcher
from parallel.dispatch.local import LocalDispatch
from trainer.config.model import ModelConfig
from trainer.model.experts.base import Backend
from trainer.model.experts.choose import choose_backend
from trainer.model.experts.module import Experts
from trainer.model.ops import TORCH, Ops
from trainer.model.router import Router, RouterStats, Selection


class MoE(nn.Module):
    """Sum over each token's K experts of routing weight * expert(token).

    `dispatcher` decides where experts live; expert parallelism only puts another one here. `ops`: for the router.
    `backend`: computes the experts; None for the one that `cfg` names, in plain torch.
    """

    def __init__(self, cfg: ModelConfig, ops: Ops = TORCH, backend: Backend | None = None) -> None:
        super().__init__()
        self.router = Router(cfg, ops)
        backend = backend or choose_backend("fp32", cfg.expert_backend)()
        self.experts = Experts(cfg.num_experts, cfg.hidden_size, cfg.expert_width, backend)
        self.num_experts = cfg.num_experts
        self.dispatcher: Dispatcher = LocalDispatch()

    def forward(self, x: Tensor, expert_ids: Tensor | Selection | None = None) -> tuple[Tensor, RouterStats]:
        """x: [T, H]; expert_ids: [T, K] int64 to replay a selection -> [T, H], statistics of the router."""
        ids_TK, weights_TK, stats = self.router(x, expert_ids)
        return self.mix(x, ids_TK, weights_TK), stats

    def mix(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """x: [T, H]; ids, weights: [T, K] of the router -> [T, H]."""
        return self.dispatcher(x, ids, weights, self.num_experts, self.experts)
