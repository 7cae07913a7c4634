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
    """Log-probabilities of labels under the model's distribution at temperature 1, before any filter such as top-p.

    Args: model: with the LM head. hidden: [N, H] after the final norm. labels: [N] int64; IGNORE where there is none.
        chunk: the most tokens whose logits are in memory together; with more tokens than that, logits are computed
        again in the backward pass.
    Returns: [N] in nats, fp32 (fp64 for logits in fp64); 0 where the label is IGNORE. In exact arithmetic these are bit
        for bit the engine's log-probabilities.
    """
    (found,) = _in_chunks(lambda hidden, labels: (_of_labels(model.logits(hidden), labels)[0],), hidden, labels, chunk)
    return found


def log_probs_and_entropies(
    model: Decoder, hidden: Tensor, labels: Tensor, chunk: int, *, bonus: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of labels, and the entropies of the distributions that they are taken from.

    Args: as for `token_log_probs`. bonus: let the entropies carry a gradient.
    Returns: the log-probabilities as `token_log_probs` returns them, and the entropies, [N] in nats, 0 where the label
        is IGNORE.
    """

    def of_chunk(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(hidden)
        found, log_z = _of_labels(logits, labels)
        with torch.set_grad_enabled(bonus and torch.is_grad_enabled()):
            entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
        return found, entropy.where(labels != IGNORE, 0.0)

    log_probs, entropies = _in_chunks(of_chunk, hidden, labels, chunk)
    return log_probs, entropies


def _of_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of labels, and the log-sum-exp of each row of logits, by which they are normalised."""
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
