"""From a precision recipe to dtypes, and whether this machine can run it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import get_args

import torch

from parallel.errors import Fault, one_of
from trainer.config.coerce import keys
from trainer.config.keys import PrecisionConfig
from trainer.model.experts.te import support

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WIDTH = 100  # columns of `table`
# Parts of the towers that compute in fp32 whatever the recipe.
IN_FP32 = {"vision": ("norms", "position table"), "signals": ("norms", "position tables", "convolutions")}
ON_ANY_DEVICE = ("fp32", "bf16", "fp8_reference")


def narrow_moments(cfg: PrecisionConfig) -> torch.dtype | None:
    """The dtype of the optimizer's moments, or None where it is that of the masters."""
    return None if cfg.moments == cfg.masters else DTYPES[cfg.moments]


def experts_unavailable(experts: str, device: torch.device) -> str | None:
    """The reason why experts of this precision cannot run on `device`, with a remedy; None where they can."""
    return None if experts in ON_ANY_DEVICE else support.unavailable(experts, device)


def unavailable(cfg: PrecisionConfig, device: torch.device) -> Fault | None:
    """The reason why this machine cannot run `cfg`, with the recipes that it can run; None where it can."""
    reason = experts_unavailable(cfg.experts, device)
    if reason is None:
        return None
    allowed = tuple(
        name for name in get_args(keys(PrecisionConfig)["experts"]) if not experts_unavailable(name, device)
    )
    return Fault(
        f"precision.experts={cfg.experts} is unavailable: {reason}. On this machine use precision={one_of(allowed)}",
        where="precision.experts", value=cfg.experts, allowed=allowed,
    )  # fmt: skip


def table(cfg: PrecisionConfig, experts: str, towers: Sequence[str] = ()) -> str:
    """The parts of the model in each dtype, for the log. experts: as `describe_backend` returns it. towers: those that
    the model has."""
    labels = {"experts": f"experts ({experts})", "kept": "inputs kept for backward"}
    parts: dict[str, list[str]] = {}
    for part, value in vars(cfg).items():
        dtype = cfg.linears if value == "exact" else value  # kept=exact keeps the activations themselves
        parts.setdefault(dtype, []).append(labels.get(part, part.replace("_", " ")))
    for tower in towers:
        name = f"{tower.removesuffix('s')} tower"
        if cfg.linears == "fp32":
            parts["fp32"].append(name)
        else:
            parts[cfg.linears].append(f"{name} (matrices)")
            parts.setdefault("fp32", []).append(f"{name} ({', '.join(IN_FP32[tower])})")
    rows = (f"{dtype:<15}{', '.join(names)}" for dtype, names in parts.items())
    return "\n".join(textwrap.fill(row, WIDTH, subsequent_indent=" " * 15, break_long_words=False) for row in rows)
