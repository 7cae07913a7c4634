"""Imbalance between data-parallel ranks: attention inside documents costs the square of their lengths, so
windows of the same size do not cost the same, and a step lasts as long as its slowest rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def attention_costs(starts_BL: npt.NDArray[np.bool_]) -> Ints:
    """[B] sum over a window's documents of their squared lengths.

    starts_BL: [B, S + 1], true where a document starts; the last of the S + 1 tokens is a label alone and has no query.
    """
    B, S = starts_BL.shape[0], starts_BL.shape[1] - 1
    first_BS = starts_BL[:, :S].copy()
    first_BS[:, 0] = True
    starts = np.flatnonzero(first_BS)
    lengths = np.diff(np.append(starts, B * S))
    return np.bincount(starts // S, weights=lengths.astype(np.float64) ** 2, minlength=B).astype(np.int64)


def imbalance(costs: Ints, micro_batch: int, ranks: int) -> float:
    """Cost of the busiest rank over the mean of all ranks, averaged over micro-batches; 1: balance.

    costs: of consecutive samples from the start of a step. Ranks wait for each other at every micro-batch; rank r
    takes samples r * micro_batch .. of each run of ranks * micro_batch; `costs` must hold such a run.
    """
    whole = len(costs) // (ranks * micro_batch) * (ranks * micro_batch)
    busy = costs[:whole].reshape(-1, ranks, micro_batch).sum(axis=2)
    return float((busy.max(axis=1) / busy.mean(axis=1)).mean())
