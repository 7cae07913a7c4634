"""The contract of objectives.

An objective is three pieces, so that the stages of a pipeline can run the model between the first and the second:
`inputs` of the model, then `loss` in training and `measure` on held-out data, both from the last hidden states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from trainer.data.batch import Batch
from trainer.data.protocols import Data
from trainer.model.decoder import Decoder
from trainer.objectives.router import router_scalars
from trainer.objectives.scalars import GlobalBatch, Scalars


class Objective(ABC):
    """The function that a run minimises.

    A new one is a subclass in a file of trainer/objectives, a line in `OBJECTIVES`, its name in the Literal of
    `TrainConfig.objective` (trainer/config/keys.py) plus any keys of its own, and a recipe.
    """

    unused: tuple[str, ...] = ()  # parameters that get no gradient, by name: they are frozen
    embeds_pairs = False  # the model's output is embeddings of pairs, [2, pairs, width], for retrieval
    unit: str  # what `count` counts, for messages

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Units of `batch` that the main loss is a mean over, such as supervised tokens; counted on the host."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments of the model's forward pass, by name."""
        return batch.model_inputs()

    @abstractmethod
    def loss(self, model: Decoder, hidden: Tensor, batch: Batch, whole: GlobalBatch) -> Scalars:
        """Scalars of one micro-batch from its hidden states [B, S, H] after the final norm.

        model: the stage with the LM head. Collective over the ranks of `whole`; must not wait for the device.
        """

    @abstractmethod
    def measure(self, model: Decoder, hidden: Tensor, batch: Batch) -> Scalars:
        """Scalars of held-out data, named as in the evaluation record. Their values and normalisers are summed over
        batches and ranks before the division, so the result does not depend on the number of ranks. A source whose
        normalisers are 0 has no value."""

    def baselines(self, data: Data) -> dict[str, Any]:
        """Fields of the last evaluation record that say what a trivial model would reach."""
        return {}

    def __call__(self, model: Decoder, batch: Batch, whole: GlobalBatch) -> Scalars:
        """Run one micro-batch through a whole model: `loss`, and the routers' losses."""
        hidden, routing = model(**self.inputs(batch))
        return Scalars(**self.loss(model, hidden, batch, whole), **router_scalars(routing, model.cfg, whole))

    def evaluate(self, model: Decoder, batch: Batch) -> Scalars:
        """Run one held-out batch through a whole model: `measure`."""
        return self.measure(model, model(**self.inputs(batch)).hidden, batch)
