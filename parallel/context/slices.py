"""The part of a sequence that each rank holds, and which numbers of ranks can share it. No torch here.

A batch of several rows counts as one sequence, with the rows end to end; each row is a document of its own anyway.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Literal

from parallel.layout import divisors

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


def divides(heads: int, kv_heads: int, ranks: int) -> bool:
    """Return True if `ranks` can share the heads in Ulysses: each rank gets equally many query heads, and either whole
    kv heads of its own or one that several ranks read."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def divisors_of_heads(heads: int, kv_heads: int) -> tuple[int, ...]:
    """The numbers of ranks for which `divides` is True."""
    return tuple(ranks for ranks in divisors(heads) if divides(heads, kv_heads, ranks))
