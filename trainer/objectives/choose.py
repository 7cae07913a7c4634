"""Choose the objective that `train.objective` names."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.keys import TrainConfig
from trainer.model.decoder import Decoder
from trainer.objectives.base import Objective
from trainer.objectives.contrastive import Contrastive
from trainer.objectives.image_text import ImageText
from trainer.objectives.next_token import NextToken

OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {
    "next_token": lambda cfg: NextToken(cfg.loss_chunk),
    "contrastive": lambda cfg: Contrastive(cfg.contrastive_temperature),
    "image_text": lambda cfg: ImageText(cfg.pair_loss),
}


def build_objective(cfg: TrainConfig) -> Objective:
    """The objective that `train.objective` names, with its settings."""
    return OBJECTIVES[cfg.objective](cfg)


def freeze_unused(model: Decoder, objective: Objective) -> None:
    """Freeze the parameters that `objective` never reaches, so that no rank waits for their gradients and no weight
    decay moves them. Before the model is spread over ranks."""
    for name, parameter in model.named_parameters():  # a pipeline stage has only some
        if name in objective.unused:
            parameter.requires_grad_(False)
