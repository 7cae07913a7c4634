"""Log-probabilities of tokens, as a rollout engine computes them: from the model's own logits, row by row.

Legend: N tokens · H hidden size · V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trainer.data.batch import IGNORE
from trainer.model.decoder import Decoder


def token_log_probs(
    model: Decoder, hidden: Tensor, labels: Tensor, chunk: int, *, bonus: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of labels under the raw distribution, and its entropies.

    Args: model: with the LM head. hidden: [N, H] after the final norm. labels: [N] int64, or IGNORE. chunk: tokens
        whose logits exist at one time; with more they are computed again in backward. bonus: entropies carry a
        gradient.
    Returns: two of [N] fp32 (fp64), in nats, 0 where there is no label. In exact arithmetic the
        log-probabilities are those of the engine, bit by bit.
    """

    def of_chunk(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits, there = model.logits(hidden), labels != IGNORE
        log_z = torch.logsumexp(logits, dim=-1)
        found = logits.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1) - log_z
        with torch.set_grad_enabled(bonus and torch.is_grad_enabled()):
            entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
        return found.where(there, 0.0), entropy.where(there, 0.0)

    if len(labels) <= chunk:
        return of_chunk(hidden, labels)
    parts = [
        checkpoint(of_chunk, some, of_some, use_reentrant=False)
        for some, of_some in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
    log_probs, entropies = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropies)
