"""Next-token prediction: chunked cross-entropy under an fp32 head.

Legend: B sequences · S tokens of each · N tokens · H hidden size · V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trainer.data.batch import IGNORE, Batch
from trainer.data.protocols import Data
from trainer.data.text import unigram_nats
from trainer.model.decoder import Decoder
from trainer.model.numerics import wide
from trainer.objectives.base import Objective
from trainer.objectives.scalars import GlobalBatch, Scalar, Scalars

FIXED_POINT = 2**32  # weights are counted in whole numbers, which add up to the same in any layout


class NextToken(Objective):
    """`loss` is in nats per supervised token of the step; of batches with weights, the weighted mean over all of them.

    chunk: tokens whose logits exist at one time.
    """

    unit = "supervised token"

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def count(self, batch: Batch) -> int:
        return batch.num_tokens if batch.weights is None else round(float(batch.weights.sum()) * FIXED_POINT)

    def loss(self, model: Decoder, hidden: Tensor, batch: Batch, whole: GlobalBatch) -> Scalars:
        units = whole.units if batch.weights is None else whole.units / FIXED_POINT
        return Scalars(loss=Scalar(self._nats(model, hidden, batch), units, loss=True, per_unit=True))

    def measure(self, model: Decoder, hidden: Tensor, batch: Batch) -> Scalars:
        return Scalars(heldout=Scalar(self._nats(model, hidden, batch), batch.num_tokens))

    def baselines(self, data: Data) -> dict[str, Any]:
        """Nats of the unigram of the training mixture, by source, and of the uniform distribution; {} without text."""
        if data.text is None:
            return {}
        return {"unigram": unigram_nats(data.text), "uniform": math.log(data.text.vocab_size)}

    def _nats(self, model: Decoder, hidden: Tensor, batch: Batch) -> Tensor:
        assert batch.labels is not None  # every stream of text has them
        assert model.lm_head is not None
        weights = None if batch.weights is None else batch.weights.flatten()
        return chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head, batch.labels.flatten(), self.chunk, weights)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's probabilities are in cache; the logits of all tokens
    never exist at once and nothing is computed twice. Not `F.linear_cross_entropy`: torch has it only since 2.13, and
    it was slower and costs 157 MB and 1.3 CPU-seconds at its first call (docs/log.md, 2026-11-29)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        chunk: int,
        with_grad: bool,
    ) -> Tensor:
        dtype = wide(hidden.dtype)
        high, head = hidden.to(dtype), weight.to(dtype)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)  # of many chunks
        rows = min(chunk, len(labels))
        logit_buffer, p_buffer = head.new_empty(rows, len(head)), head.new_empty(rows, len(head))
        d_hidden = torch.empty_like(high) if with_grad else None
        d_weight = torch.zeros_like(head) if with_grad and ctx.needs_input_grad[1] else None  # a frozen head needs none
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            counted = labels[part] != IGNORE if weights is None else weights[part]
            h_NH, counted_N1 = high[part], counted.unsqueeze(-1).to(dtype)
            target_N1 = labels[part].clamp_min(0).unsqueeze(-1)
            logits, p = logit_buffer[: len(h_NH)], p_buffer[: len(h_NH)]
            torch.mm(h_NH, head.t(), out=logits)
            torch.softmax(logits, dim=-1, out=p)
            # The largest probability is 1 / sum(exp(z - max)), which gives logsumexp without a second exponential.
            log_z = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
            total += ((log_z - logits.gather(-1, target_N1)) * counted_N1).sum()
            if d_hidden is not None:
                p.scatter_add_(-1, target_N1, torch.full_like(counted_N1, -1.0))
                torch.mm(p, head, out=d_hidden[part]).mul_(counted_N1)
            if d_weight is not None:
                d_weight.addmm_(p.t(), h_NH * counted_N1)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        d_weight = None if d_weight is None else (d_weight * grads[0]).to(weight_dtype)
        return (d_hidden * grads[0]).to(hidden_dtype), d_weight, None, None, None, None


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy in nats of the logits hidden @ weight.T, summed over the labels that are not IGNORE.

    Args: hidden: [N, H]. weight: [V, H]. labels: [N] int64 in [0, V) or IGNORE. chunk: tokens with logits at a time.
    weights: [N] that the labels' terms are multiplied by, 0 for IGNORE; None: 1.
    Returns: 0-dim, fp32 (fp64 for fp64 inputs); head and softmax are computed in that dtype.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, weights, chunk, torch.is_grad_enabled())
