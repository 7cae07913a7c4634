"""AdamW whose count of steps is given from outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel.fused_adamw import MOMENTS, fused_adamw


class CountedAdamW(torch.optim.Optimizer):
    """torch's fused AdamW; `applied` is the number of updates before the next `step`.

    torch's own class keeps that number as a tensor for each parameter. DeepSpeed moves all tensors of the state to NVMe
    and back, in blocks that a number does not fill, and every partition of a model has the same number anyway.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.applied = 0

    def give_moments(self, flat: Tensor, *, pinned: bool = False) -> None:
        """Allocate the moments of `flat`, zero, beside it; pinned: in page-locked host memory."""
        self.state[flat] = {
            key: torch.zeros(flat.shape, dtype=flat.dtype, device=flat.device, pin_memory=pinned) for key in MOMENTS
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            flats = [flat for flat in group["params"] if flat.grad is not None]
            if not flats:
                continue
            fused_adamw(
                flats,
                [flat.grad for flat in flats if flat.grad is not None],
                ([self.state[flat]["exp_avg"] for flat in flats], [self.state[flat]["exp_avg_sq"] for flat in flats]),
                [torch.tensor(float(self.applied), device=flat.device) for flat in flats],
                group,
            )
