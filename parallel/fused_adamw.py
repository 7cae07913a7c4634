"""One update of torch's fused AdamW on tensors that the caller chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")


def fused_adamw(
    weights: list[Tensor],
    gradients: list[Tensor],
    moments: tuple[list[Tensor], list[Tensor]],
    steps: list[Tensor],
    group: Mapping[str, Any],
    *,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Update `weights`, `moments` and `steps` in place (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).

    moments: those of `MOMENTS`, in the shapes of `weights`. steps: for each weight a scalar in fp32, the number of
    updates before this one. group: `lr`, `betas`, `eps` and `weight_decay`, as in a group of `torch.optim.AdamW`.
    grad_scale: a scalar that divides the gradients. found_inf: a scalar; 1 leaves everything as it was.
    """
    adamw(
        weights,
        gradients,
        *moments,
        [],
        steps,
        fused=True,
        grad_scale=grad_scale,
        found_inf=found_inf,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
