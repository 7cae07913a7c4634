"""Choose the objective that `train.objective` names."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.keys import TrainConfig
from trainer.config.rl.keys import RlConfig
from trainer.model.decoder import Decoder
from trainer.objectives.base import Objective
from trainer.objectives.contrastive import Contrastive
from trainer.objectives.image_text import ImageText
from trainer.objectives.next_token import NextToken
from trainer.objectives.policy import Policy

OBJECTIVES: dict[str, Callable[[TrainConfig, RlConfig], Objective]] = {
    "next_token": lambda cfg, _: NextToken(cfg.loss_chunk),
    "contrastive": lambda cfg, _: Contrastive(cfg.contrastive_temperature),
    "image_text": lambda cfg, _: ImageText(cfg.pair_loss),
    "policy": lambda cfg, rl: Policy(rl, cfg.loss_chunk),
}


def build_objective(cfg: TrainConfig, rl: RlConfig | None = None) -> Objective:
    """The objective that `train.objective` names, with its settings. rl: of `policy`; None for its defaults."""
    return OBJECTIVES[cfg.objective](cfg, rl or RlConfig())


def freeze_unused(model: Decoder, objective: Objective) -> None:
    """Freeze the parameters that `objective` never reaches, so that no rank waits for their gradients and no weight
    decay moves them. Before the model is spread over ranks."""
    for name, parameter in model.named_parameters():  # a pipeline stage has only some
        if name in objective.unused:
            parameter.requires_grad_(False)
