"""AdamW whose count of steps is given from outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")


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
            means, squares = ([self.state[flat][key] for flat in flats] for key in MOMENTS)
            adamw(
                flats,
                [flat.grad for flat in flats],
                means,
                squares,
                [],
                [torch.tensor(float(self.applied), device=flat.device) for flat in flats],
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
