"""The learning rate of a step, and which parameters decay. No torch here: a launcher asks for the rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from trainer.config.keys import OptimConfig
from trainer.optim.parts import settings_of

if TYPE_CHECKING:
    from torch import nn

JUMP = 0.1  # change of the rate, relative to what it was, that is worth a warning


def lr_at(step: int, cfg: OptimConfig, steps: int) -> float:
    """Learning rate of optimizer step `step` (1 to `steps`) of `steps` steps.

    Linear warmup over `warmup_steps`; then
      wsd       constant, and over the last `decay_fraction` of the steps linear to `lr * min_lr_ratio`;
      cosine    half a cosine from `lr` to `lr * min_lr_ratio` at the last step;
      constant  `lr`.
    A pure function, so a resumed run needs no schedule state; in a longer run (`train.steps`) the decay starts later.
    """
    if step <= cfg.warmup_steps:
        return cfg.lr * step / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.lr
    start = cfg.warmup_steps
    if cfg.schedule == "wsd":
        start = max(start, steps - cfg.decay_steps(steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    fall = progress if cfg.schedule == "wsd" else (1.0 - math.cos(math.pi * progress)) / 2.0
    return cfg.lr * (1.0 - (1.0 - cfg.min_lr_ratio) * fall)


def jump(step: int, cfg: OptimConfig, planned: int, steps: int) -> str | None:
    """A line for a warning where a run of `planned` steps continues after `step` to `steps` steps, and its learning
    rate does not continue where it was; None where it does."""
    before, after = lr_at(step, cfg, planned), lr_at(step, cfg, steps)
    if abs(after - before) <= JUMP * before:
        return None
    end = "later" if steps > planned else "earlier"
    return (
        f"train.steps={steps} was {planned}, so optim.schedule={cfg.schedule} ends {end}: after step {step} the "
        f"learning rate changes at once from {before:.3g} to {after:.3g}"
    )


class Group(NamedTuple):
    """Parameters that are updated alike. ratio: of their learning rate to `optim.lr`."""

    names: list[str]
    decay: float
    ratio: float


def groups(
    parameters: dict[str, nn.Parameter], cfg: OptimConfig, rates: Mapping[str, float] | None = None
) -> list[Group]:
    """The groups of parameters by weight decay and learning rate, which `optim.parts` may give; frozen parts are in
    none. Vectors (norms' gains) do not decay: pulling a gain towards zero does not regularise. The shape of the whole
    parameter decides, not that of a shard. rates: name -> a factor on the rate of the parameter."""
    found: dict[tuple[float, float], list[str]] = {}
    for name, parameter in sorted(parameters.items(), key=lambda item: item[1].ndim <= 1):
        of_part = settings_of(name, cfg)
        if of_part.freeze:
            continue
        decay = cfg.weight_decay if of_part.weight_decay is None else of_part.weight_decay
        ratio = (1.0 if of_part.lr is None else of_part.lr / cfg.lr) * (rates or {}).get(name, 1.0)
        found.setdefault((decay if parameter.ndim > 1 else 0.0, ratio), []).append(name)
    return [Group(names, decay, ratio) for (decay, ratio), names in found.items()]
