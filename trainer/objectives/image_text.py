"""Contrastive learning over images and their captions.

The losses of `pair_losses` on unit vectors, with a scale, and for the sigmoid loss a bias, that are trained. Pairs with
the same caption or the same image are not each other's negatives.

Legend: P pairs on this rank · D width of an embedding.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.dual_encoder import DualEncoder
from trainer.objectives.base import Objective
from trainer.objectives.pair_losses import sigmoid_pairs, softmax_pairs
from trainer.objectives.scalars import GlobalBatch, Scalar, Scalars


class ImageText(Objective):
    """The pairs of all ranks in a micro-batch are each other's negatives. `loss`: nats per pair. `accuracy`: share of
    embeddings that are closer to their own counterpart than to any other. `similarity`: mean cosine of a pair."""

    unit = "pair"
    embeds_pairs = True

    def __init__(self, loss: Literal["softmax", "sigmoid"]) -> None:
        self._sigmoid = loss == "sigmoid"
        self.unused = ("lm_head",) if self._sigmoid else ("lm_head", "bias")

    def count(self, batch: Batch) -> int:
        return len(batch.samples)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        media = batch.media
        assert media is not None  # every stream of pairs has it
        texts = {name: batch.inputs[name] for name in ("ids", "positions")}
        return {**texts, "cu_seqlens": batch.cu_seqlens, "images": media.images, "image_moves": media.image_moves}

    def loss(self, model: Decoder, hidden: Tensor, batch: Batch, whole: GlobalBatch) -> Scalars:
        """hidden: [2, P, D], embeddings of images and of texts. Collective over the ranks of `whole`."""
        assert isinstance(model, DualEncoder)
        a_PD, b_PD = F.normalize(hidden, dim=-1)
        scale, hashes = model.scale, batch.inputs["hashes"]
        if self._sigmoid:
            sums = sigmoid_pairs(a_PD, b_PD, scale, model.bias, whole.world, hashes)
        else:
            sums = softmax_pairs(a_PD, b_PD, scale, whole.world, hashes)
        found = Scalars(
            loss=Scalar(sums.loss, whole.units, loss=True, per_unit=True),
            accuracy=Scalar(sums.hits / 2, whole.units, per_unit=True),
            similarity=Scalar((a_PD * b_PD).sum().detach(), whole.units, per_unit=True),
            scale=Scalar(scale.detach().squeeze(0), micro_batches="max", ranks="max"),
        )
        if self._sigmoid:
            # Cloned: after backward FSDP frees what it has gathered, and a view of it with it.
            found["bias"] = Scalar(model.bias.detach().squeeze(0).clone(), micro_batches="max", ranks="max")
        return found

    def measure(self, model: Decoder, hidden: Tensor, batch: Batch) -> Scalars:
        """hidden: [2, P, D]; the pairs of this batch alone are each other's negatives."""
        found = self.loss(model, hidden, batch, GlobalBatch(len(batch.samples)))
        return Scalars(heldout=found["loss"], heldout_accuracy=found["accuracy"])
