"""Contrastive learning over pairs: the two halves of a document attract each other and repel those of all others.

The softmax loss of `pair_losses` on unit vectors, divided by a fixed temperature. The pairs of all ranks are each
other's negatives, so the loss is that of one process with the whole micro-batch.

Legend: T tokens of a micro-batch · D documents · H hidden size · P pairs on this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.numerics import wide
from trainer.model.pooling import means
from trainer.objectives.base import Objective
from trainer.objectives.pair_losses import softmax_pairs
from trainer.objectives.scalars import GlobalBatch, Scalar, Scalars


class Contrastive(Objective):
    """Pairs are the halves of documents, each run as a document of its own and embedded as the mean of its hidden
    states."""

    unused = ("lm_head",)
    unit = "document of two tokens or more"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def count(self, batch: Batch) -> int:
        """Documents of two tokens or more: each is a pair."""
        return int((batch.cu_seqlens.diff() > 1).sum())

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Positions are counted from the start of each half."""
        bounds, _ = halve(batch.cu_seqlens)
        positions = batch.inputs["positions"]
        starts_T = bounds[:-1].repeat_interleave(bounds.diff())
        restarted = (torch.arange(len(starts_T)) - starts_T).view(positions.shape).to(positions.device)
        return {**batch.model_inputs(), "positions": restarted, "cu_seqlens": bounds}

    def loss(self, model: Decoder, hidden: Tensor, batch: Batch, whole: GlobalBatch) -> Scalars:
        return info_nce(*pairs(hidden, batch), self.temperature, whole)

    def measure(self, model: Decoder, hidden: Tensor, batch: Batch) -> Scalars:
        a_PH, b_PH = pairs(hidden, batch)
        found = info_nce(a_PH, b_PH, self.temperature, GlobalBatch(len(a_PH)))
        return Scalars(heldout=found["loss"], heldout_accuracy=found["accuracy"])


def pairs(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean hidden states [P, H] of first and second halves, in fp32 or better. hidden: [B, S, H]."""
    bounds, first_P = halve(batch.cu_seqlens)
    x_TH = hidden.flatten(0, 1).to(wide(hidden.dtype))
    mean_DH = means(x_TH, bounds)
    first_P = first_P.to(x_TH.device)
    return mean_DH[first_P], mean_DH[first_P + 1]


def halve(cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Cut every document of two tokens or more in the middle.

    cu_seqlens: [D + 1] int32 on the CPU. Returns the new bounds [D + P + 1] and, for each pair, the number of its first
    half among the new documents [P]; the second half is the next one.
    """
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    long = ends - starts > 1
    middles = (starts[long] + ends[long] + 1) // 2
    bounds = torch.cat([cu_seqlens, middles]).sort().values
    return bounds, torch.searchsorted(bounds, starts[long])


def info_nce(a_PH: Tensor, b_PH: Tensor, temperature: float, whole: GlobalBatch) -> Scalars:
    """`loss`, `accuracy`, `similarity` and `temperature` of P pairs of embeddings of any two kinds.

    Row i of a and row i of b are a pair; lengths of the vectors do not matter. Ranks may hold different numbers of
    pairs. accuracy: share of embeddings whose nearest counterpart is their own. similarity: mean cosine of a pair.
    `whole.units` is the number of pairs in the step. Collective over the ranks of `whole`.
    """
    a_PH, b_PH = F.normalize(a_PH, dim=-1), F.normalize(b_PH, dim=-1)
    sums = softmax_pairs(a_PH, b_PH, a_PH.new_full((), 1 / temperature), whole.world)
    return Scalars(
        loss=Scalar(sums.loss, whole.units, loss=True, per_unit=True),
        accuracy=Scalar(sums.hits / 2, whole.units, per_unit=True),
        similarity=Scalar((a_PH * b_PH).sum(), whole.units, per_unit=True),
        temperature=Scalar(a_PH.new_full((), temperature), micro_batches="max", ranks="max"),
    )
