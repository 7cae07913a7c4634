"""Forward passes outside of training, alike for a whole model and for the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from parallel.context.share import Share
from parallel.pipeline.plan import Plan
from parallel.pipeline.relay import Relay
from trainer.config.model import ModelConfig
from trainer.data.batch import Batch
from trainer.data.media.balance import Balance, Load
from trainer.model.decoder import Decoder, DecoderOutput

ALL = Share()
# inputs that the first stage turns into hidden states
OF_FIRST = ("ids", "embeds", "images", "signals", "image_places", "signal_places", "image_moves")


class Hidden(NamedTuple):
    """hidden: [B, S, H] after the final norm. model: the part of the decoder with the LM head."""

    model: Decoder
    hidden: Tensor


class Forward(Protocol):
    """Runs a batch through the model without gradients. Collective over the ranks that share a batch.

    share: the part of each sequence whose inputs this rank gives, and whose hidden states it gets. balance: spreads the
    images of a batch over the ranks with the vision tower; None where each runs its own.
    """

    device: torch.device
    share: Share
    balance: Balance | None
    cfg: ModelConfig  # of the whole model

    def __call__(self, inputs: Mapping[str, Any]) -> Hidden | None:
        """inputs: of the decoder's forward, by name. None on the ranks that do not have the last stage."""


class Whole:
    """The forward pass of a whole model."""

    def __init__(self, model: Decoder, share: Share = ALL, balance: Balance | None = None) -> None:
        self.model, self.share, self.balance, self.cfg = model, share, balance, model.cfg
        self.device = next(model.parameters()).device

    def __call__(self, inputs: Mapping[str, Any]) -> Hidden:
        return Hidden(self.model, self.model(**inputs).hidden)


class Relayed:
    """The forward pass through a pipeline. stages: this rank's, by number."""

    def __init__(
        self,
        stages: Mapping[int, Decoder],
        plan: Plan,
        group: Any,
        share: Share = ALL,
        balance: Balance | None = None,
    ) -> None:
        self.stages, self.relay, self.share, self.balance = stages, Relay(plan.owners, group), share, balance
        self.first = next(iter(stages.values()))
        self.cfg = self.first.cfg
        self.device = next(self.first.parameters()).device

    def __call__(self, inputs: Mapping[str, Any]) -> Hidden | None:
        shape = (inputs["positions"].numel(), self.first.cfg.hidden_size)
        x = self.relay.forward(
            {number: partial(_hidden, stage, inputs) for number, stage in self.stages.items()},
            shape,
            self.first.activations,
            self.device,
        )
        last = next((stage for stage in self.stages.values() if stage.span.head), None)
        return None if last is None or x is None else Hidden(last, x)


def own_parts(forward: Forward, batches: Sequence[Batch]) -> tuple[list[Batch], Load | None]:
    """This rank's parts of micro-batches, with the moves of their images, and the load of the vision tower; None where
    images stay on their ranks. Collective over the ranks with the tower. All have their media in place."""
    parts = [batch.part(forward.share) for batch in batches]
    return (parts, None) if forward.balance is None else forward.balance(parts)


def _hidden(stage: Decoder, inputs: Mapping[str, Any], x: Tensor | None) -> Tensor:
    return run_stage(stage, inputs, x).hidden


def run_stage(stage: Decoder, inputs: Mapping[str, Any], x: Tensor | None) -> DecoderOutput:
    """A stage's output. x: what the stage before returned, in the place of the inputs of the embedding."""
    output: DecoderOutput
    if x is None:
        output = stage(**inputs)
        return output
    rest = {name: value for name, value in inputs.items() if name not in OF_FIRST}
    output = stage(**rest, embeds=x)
    return output
