"""Attention of many documents that one block of keys holds, in a few products for all of them.

The arithmetic is that of `attention.attend`, bit by bit, with one block of keys for every document.

Legend: T tokens of all documents · D documents · S the longest of them · n kv heads · r query heads of each · d head
dimension · C queries of a block · R = C*r rows of a block · b blocks of queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.exact.blocks import KEYS, QUERY_ROWS
from trainer.model.numerics import wide

SCORES = 1 << 23  # numbers of scores in memory at one time


class Padded:
    """Documents of similar lengths, each filled up to the longest. tokens: [T], the numbers of their tokens among those
    of all documents; places: [T], among the D * S places."""

    def __init__(self, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        self.documents, self.longest = len(lengths), max(lengths)
        sizes = np.array(lengths)
        within = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
        self.tokens = torch.from_numpy(np.repeat(np.array(starts), sizes) + within).to(device)
        places = np.repeat(np.arange(len(sizes)) * self.longest, sizes) + within
        self.places = torch.from_numpy(places).to(device)

    def fill(self, x: Tensor) -> Tensor:
        """x: [., ...], of all documents -> [D, S, ...], zero behind each document. Differentiable."""
        found = x.new_zeros(self.documents * self.longest, *x.shape[1:])
        return found.index_copy(0, self.places, x.index_select(0, self.tokens)).unflatten(0, (-1, self.longest))

    def take(self, y: Tensor) -> Tensor:
        """y: [D, S, ...] -> [T, ...], at `tokens`."""
        return y.flatten(0, 1).index_select(0, self.places)


def short_documents(lengths: Sequence[int], rows: int, device: torch.device) -> Iterator[Padded]:
    """The documents of at most KEYS tokens, those of similar lengths together. rows: n * r, query heads."""
    starts = np.cumsum(lengths) - np.array(lengths)
    classes: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        if length <= KEYS:
            classes.setdefault(max(4, 1 << (length - 1).bit_length()), []).append(number)
    for size, numbers in sorted(classes.items()):
        most = max(1, SCORES // (size * rows * KEYS))
        for first in range(0, len(numbers), most):
            some = numbers[first : first + most]
            yield Padded([int(starts[number]) for number in some], [lengths[number] for number in some], device)


def attend_short(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of documents from their first token on; outside autograd.

    Args: q: [D, S, n, r, d] with S up to KEYS; k, v: [D, S, n, d]; zero behind each document.
    Returns: [D, S, n, r, d] in the dtype of k.
    """
    documents, tokens, heads, shared, width = q.shape
    per_block, dtype = -(-QUERY_ROWS // shared), wide(q.dtype)
    blocks = -(-tokens // per_block)
    q = F.pad(q.to(dtype) * width**-0.5, (0, 0, 0, 0, 0, 0, 0, blocks * per_block - tokens))
    q_bDnRd = q.view(documents, blocks, per_block, heads, shared, width).permute(1, 0, 3, 2, 4, 5)
    q_bDnRd = q_bDnRd.reshape(blocks, documents * heads, per_block * shared, width)
    keys, values = (F.pad(x.to(dtype).transpose(1, 2), (0, 0, 0, KEYS - tokens)).flatten(0, 1) for x in (k, v))
    position_bR = torch.arange(blocks * per_block, device=q.device).repeat_interleave(shared).view(blocks, -1)
    unseen_bRK = torch.arange(KEYS, device=q.device) > position_bR.unsqueeze(-1)
    scores = torch.stack([torch.bmm(of_block, keys.mT) for of_block in q_bDnRd])
    scores.masked_fill_(unseen_bRK.unsqueeze(1), -torch.inf)
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    total = weights.sum(-1, keepdim=True)
    y = torch.stack([torch.bmm(of_block, values) for of_block in weights]) / total
    y = y.view(blocks, documents, heads, per_block, shared, width).permute(1, 0, 3, 2, 4, 5)
    return y.flatten(1, 2)[:, :tokens].to(k.dtype)
