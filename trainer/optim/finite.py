"""Weights that are not finite, with which no step can be taken, and the reasons for which steps are skipped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from parallel.sharding.local import local_part
from parallel.world import World
from trainer.optim.engine import Engine

SHOWN = 3


@torch.no_grad()
def not_finite(stages: Iterable[nn.Module], engine: Engine, world: World) -> list[str]:
    """The trained parameters in which a number is NaN or infinite on any rank, by name. Collective; waits for the
    device and takes no memory of a parameter's size."""
    named: dict[str, torch.Tensor] = {}
    for stage in stages:
        held = engine.weights(stage)
        named |= {name: local_part(held[name]) for name, p in stage.named_parameters() if p.requires_grad}
    flags = [_broken(part) if part.numel() else part.new_zeros((), dtype=torch.float32) for part in named.values()]
    mine = [name for name, flag in zip(named, torch.stack(flags).tolist(), strict=True) if flag]
    return list(dict.fromkeys(name for of_rank in world.gather(mine) for name in of_rank))


def _broken(part: torch.Tensor) -> torch.Tensor:
    low, high = part.aminmax()  # NaN if any number is
    return (~(low.isfinite() & high.isfinite())).float()


def show_names(names: list[str]) -> str:
    """Such as "a, b, c and 4 more"."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def skipping(limit: float) -> tuple[str, str]:
    """(what skipped steps had, what to do about them). limit: `rl.skip_grad_norm`."""
    remedy = "a lower optim.lr or a longer optim.warmup_steps"
    if not limit:
        return "had a gradient that was not finite", remedy
    why = f"had a gradient norm that was above rl.skip_grad_norm={limit:g} or not finite"
    return why, f"a larger rl.skip_grad_norm, {remedy}"
