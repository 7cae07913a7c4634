"""Log-probabilities of tokens, as a rollout engine computes them: from the model's own logits, row by row.

Legend: N tokens · H hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.data.batch import IGNORE
from trainer.model.decoder import Decoder
from trainer.model.numerics import log_sum_exp


def token_log_probs(model: Decoder, hidden: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """Log-probabilities of labels under the raw distribution.

    Args: model: with the LM head. hidden: [N, H] after the final norm. labels: [N] int64, or IGNORE. chunk: tokens
        whose logits exist at one time; with more they are computed again in backward.
    Returns: [N] fp32 (fp64), in nats, 0 where there is no label. In exact arithmetic they equal the engine's, bit for
        bit.
    """
    (found,) = _in_chunks(lambda hidden, labels: (_of_labels(model.logits(hidden), labels)[0],), hidden, labels, chunk)
    return found


def log_probs_and_entropies(
    model: Decoder, hidden: Tensor, labels: Tensor, chunk: int, *, bonus: bool = False
) -> tuple[Tensor, Tensor]:
    """As `token_log_probs`, and the entropies of the distributions, [N] in nats, 0 where there is no label. bonus:
    entropies carry a gradient."""

    def of_chunk(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(hidden)
        found, log_z = _of_labels(logits, labels)
        with torch.set_grad_enabled(bonus and torch.is_grad_enabled()):
            entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
        return found, entropy.where(labels != IGNORE, 0.0)

    log_probs, entropies = _in_chunks(of_chunk, hidden, labels, chunk)
    return log_probs, entropies


def _of_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of labels, and the logarithm of what the exponentials of the logits sum to."""
    log_z = log_sum_exp(logits)
    found = logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1) - log_z
    return found.where(labels != IGNORE, 0.0), log_z


def _in_chunks(
    of_chunk: Callable[[Tensor, Tensor], tuple[Tensor, ...]], hidden: Tensor, labels: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    if len(labels) <= chunk:
        return of_chunk(hidden, labels)
    parts = [
        checkpoint(of_chunk, some, of_some, use_reentrant=False)
        for some, of_some in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
    return tuple(torch.cat(of_parts) for of_parts in zip(*parts, strict=True))
