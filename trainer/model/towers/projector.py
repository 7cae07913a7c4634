"""The projector from a tower's features to embeddings of the text model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """LayerNorm, linear, GELU, linear."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-5)
        self.up = nn.Linear(width, out_width)
        self.down = nn.Linear(out_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width] -> [..., out_width]."""
        return self.down(F.gelu(self.up(self.norm(x))))
