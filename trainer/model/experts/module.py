"""The experts of one layer as a module.

Legend: T tokens · K experts per token · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.dispatch.base import RowOrder
from parallel.sharding.local import local_part
from trainer.model.experts.base import Backend


class Experts(nn.Module):
    """E SwiGLU experts as two parameters: w13 [E, 2, I, H] (gate, up) and w2 [E, H, I].

    An expert without rows costs nothing and its gradient is zero. Where the parameters are spread over ranks they keep
    these shapes, and `backend` computes with this rank's part of them.
    """

    def __init__(self, num_experts: int, hidden_size: int, width: int, backend: Backend) -> None:
        super().__init__()
        self.w13 = nn.Parameter(torch.empty(num_experts, 2, width, hidden_size))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_size, width))
        self.backend = backend

    def forward(self, x: Tensor, weights: Tensor, order: RowOrder) -> Tensor:
        """x: [T, H]; weights: [T, K] routing weights; order: the row of each (token, slot) -> [T, H]."""
        return self.backend(x, weights, local_part(self.w13), local_part(self.w2), order)
