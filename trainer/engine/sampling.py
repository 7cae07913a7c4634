"""Draws that depend on a request's distribution, seed and position alone.

A draw inverts the cumulative distribution, in the order of the tokens' ids, at a number that is hashed from seed and
position. Every operation here works on each row by itself.

Legend: N requests · V vocabulary.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.engine.request import Sampling, Scores
from trainer.model.numerics import log_sum_exp


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) of 53 bits."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of one token for each row: [N, V], [N] -> [N], in the dtype of logits."""
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - log_sum_exp(logits)


def scores_of(logits: Tensor, ids: Tensor, alternatives: int) -> Scores:
    """logits: [N, V]. ids: [N], the tokens at the places."""
    total = log_sum_exp(logits).unsqueeze(-1)
    found = (logits.gather(-1, ids.unsqueeze(-1)) - total).squeeze(-1).float().cpu().numpy()
    if not alternatives:
        return Scores(found, np.zeros((len(found), 0), np.int64), np.zeros((len(found), 0), np.float32))
    best = logits.topk(alternatives, dim=-1)
    return Scores(found, best.indices.cpu().numpy(), (best.values - total).float().cpu().numpy())


def bend(logits: Tensor, how: Sequence[Sampling], texts: Sequence[tuple[Sequence[int], int]]) -> Tensor:
    """Logits with the penalties and biases of each request; the same tensor where there are none.

    logits: [N, V], not changed. texts: prompt and answer of each request, with the length of the prompt.
    """
    if not any(one.bends for one in how):
        return logits
    logits = logits.clone()
    for row, one, (ids, prompt) in zip(logits, how, texts, strict=True):
        if one.repetition_penalty != 1:
            seen = torch.tensor(sorted({*ids}), device=logits.device)
            z = row[seen]
            row[seen] = torch.where(z > 0, z / one.repetition_penalty, z * one.repetition_penalty)
        counts = Counter(ids[prompt:]) if one.presence_penalty or one.frequency_penalty else {}
        if counts:
            taken = [one.presence_penalty + one.frequency_penalty * count for count in counts.values()]
            row[torch.tensor([*counts], device=row.device)] -= torch.tensor(taken, dtype=row.dtype, device=row.device)
        for token, bias in one.logit_bias:
            row[token] += bias
    return logits


def draw(logits: Tensor, how: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """logits: [N, V] fp32 (fp64), not changed. positions: of the tokens to be drawn -> ids [N] int64."""
    # The first maximum. On a CPU numpy finds it in a tenth of torch's time.
    found = logits.argmax(-1) if logits.is_cuda else torch.from_numpy(logits.detach().numpy().argmax(-1))
    rows = [row for row, one in enumerate(how) if one.temperature > 0]
    if rows:
        chosen = [how[row] for row in rows]
        at = [uniform(how[row].seed, positions[row]) for row in rows]
        index = torch.tensor(rows, device=logits.device)
        found[index] = _draw(logits if len(rows) == len(how) else logits[index], chosen, at)
    return found


def _draw(logits: Tensor, how: Sequence[Sampling], at: Sequence[float]) -> Tensor:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(-1)

    z = logits.double() / column([one.temperature for one in how])
    if ks := [min(one.top_k, z.shape[1]) for one in how if one.top_k]:
        best = z.topk(max(ks), dim=-1).values
        last = torch.tensor([one.top_k or 1 for one in how], device=z.device).clamp_max(max(ks)).unsqueeze(-1) - 1
        least = best.gather(-1, last).masked_fill_(column([one.top_k for one in how]) == 0, -torch.inf)
        z = z.masked_fill(z < least, -torch.inf)
    p = torch.softmax(z, dim=-1)
    for row, one in enumerate(how):
        if one.top_p < 1:
            p[row] = _top_p(p[row], one.top_p)
    if any(one.min_p for one in how):
        p = p.masked_fill(p < p.amax(-1, keepdim=True) * column([one.min_p for one in how]), 0)
    sums = p.cumsum(-1)
    # The first id whose sum is above the target: one of probability 0 adds nothing and is never that.
    return torch.searchsorted(sums, sums[:, -1:] * column(at), right=True).squeeze(-1).clamp_max_(p.shape[1] - 1)


def _top_p(p: Tensor, mass: float) -> Tensor:
    """p: [V]; zero for all but the fewest largest that reach `mass` in sum, and those that equal the last of them."""
    ordered = p.sort(descending=True).values
    needed = int((ordered.cumsum(0) < mass).sum())
    return p.masked_fill(p < ordered[min(needed, len(p) - 1)], 0)
