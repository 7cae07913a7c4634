"""The parts of a model that train in their own way, or not at all: `optim.parts`. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.config.keys import OptimConfig, PartConfig

if TYPE_CHECKING:
    from torch import nn

# Start of a parameter's name -> its part, a key of `optim.parts`; all others are the text model's.
_STARTS = {
    "vision.merger.": "merger",
    "vision.projector.": "merger",
    "vision.": "vision",
    "signals.": "signals",
}


def settings_of(name: str, cfg: OptimConfig) -> PartConfig:
    """The settings of the part that a parameter belongs to."""
    part = next((part for start, part in _STARTS.items() if name.startswith(start)), "text")
    found: PartConfig = getattr(cfg.parts, "router" if ".moe.router." in name else part)
    return found


def freeze_parts(model: nn.Module, cfg: OptimConfig, *, routers: bool = False) -> None:
    """Freeze the parts that `cfg` freezes, and the routers if `routers`. Before the model is spread over ranks."""
    for name, parameter in model.named_parameters():  # a pipeline stage has only some
        if settings_of(name, cfg).freeze or (routers and ".moe.router." in name):
            parameter.requires_grad_(False)
