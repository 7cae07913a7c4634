"""The part of a sequence that each rank holds. No torch operations that depend on values: all ranks know all parts.

A batch of several rows is one sequence of tokens here, end to end, since rows are documents of their own anyway.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["ulysses", "ring"]


def slices(kind: Kind, tokens: int, ranks: int) -> list[list[range]]:
    """Positions of each rank's pieces, ascending; no piece is empty, but a rank may have none.

    ulysses: one piece a rank, in rank order. ring: two, since under a causal mask late positions cost more than early
    ones: the sequence is cut into 2 * ranks chunks, and rank r has the chunks r and 2 * ranks - 1 - r. Ranks have
    equally many tokens if `ranks` divides `tokens`; otherwise the first ones have one more.
    """
    totals = [tokens // ranks + (rank < tokens % ranks) for rank in range(ranks)]
    heads = totals if kind == "ulysses" else [total // 2 for total in totals]
    tails = [total - head for total, head in zip(totals, heads, strict=True)][::-1]
    chunks = [range(start, stop) for start, stop in pairwise(accumulate([*heads, *tails], initial=0))]
    return [[chunk for chunk in (chunks[rank], chunks[-1 - rank]) if chunk] for rank in range(ranks)]


def take(x: Tensor, pieces: list[range], dim: int = 0) -> Tensor:
    """The tokens of `pieces` of a whole sequence, along `dim`."""
    parts = [x.narrow(dim, piece.start, len(piece)) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim) if parts else x.narrow(dim, 0, 0)
