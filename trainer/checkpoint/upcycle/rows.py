"""Rows of an embedding or LM head in another order, and rows for tokens that are new."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from trainer.checkpoint.huggingface.files import StoredTensor
from trainer.checkpoint.huggingface.read import read_box
from trainer.checkpoint.upcycle.noise import Noise
from trainer.checkpoint.upcycle.vocabulary import NEW

BLOCK_BYTES = 32 << 20  # of the source in memory at one time


def moved_rows(
    stored: StoredTensor,
    rows: Sequence[int],
    known: Collection[int] | None,
    dtype: torch.dtype,
    noise: Noise,
    name: str,
) -> Tensor:
    """The table whose row i is row rows[i] of `stored`, or, where that is NEW, the mean of the rows `known` (None: of
    all) with noise of its own, as copies of an expert get it.

    The mean: a new token then is as likely as the others are on average, whatever the hidden state, and the model's
    probabilities for them hardly change (Hewitt 2021, Initializing new word embeddings for pretrained language models).
    """
    made = torch.empty(len(rows), stored.shape[1], dtype=dtype)
    most = max(1, BLOCK_BYTES // (stored.nbytes // stored.shape[0]))
    for first, count, start in _runs(rows, most):
        if start != NEW:
            made[first : first + count] = _read(stored, start, count)
    fresh = torch.tensor([i for i, row in enumerate(rows) if row == NEW], dtype=torch.int64)
    if len(fresh):
        mean, rms = _mean(stored, known, most)
        drawn = torch.empty(len(fresh), len(mean), dtype=torch.float32)
        noise.copy(mean.float().expand_as(drawn), {f"{name}.new": drawn}, rms)
        made[fresh] = drawn.to(dtype)
    return made


def _runs(rows: Sequence[int], most: int) -> Iterator[tuple[int, int, int]]:
    """(first, count, start): rows first ... first + count - 1 are those from `start` on; NEW rows singly."""
    first = 0
    while first < len(rows):
        count = 1
        if rows[first] != NEW:
            while first + count < len(rows) and count < most and rows[first + count] == rows[first] + count:
                count += 1
        yield first, count, rows[first]
        first += count


def _read(stored: StoredTensor, start: int, count: int) -> Tensor:
    return read_box(stored, (slice(start, start + count), slice(0, stored.shape[1])))


def _mean(stored: StoredTensor, known: Collection[int] | None, most: int) -> tuple[Tensor, float]:
    """Mean [H] and root mean square of the rows `known`, in fp64."""
    total, squares, number = torch.zeros(stored.shape[1], dtype=torch.float64), 0.0, 0
    for start in range(0, stored.shape[0], most):
        count = min(most, stored.shape[0] - start)
        wanted = [row for row in range(count) if known is None or start + row in known]
        values = _read(stored, start, count)[wanted].double()
        total += values.sum(0)
        squares += float(values.square().sum())
        number += len(wanted)
    return total / number, (squares / (number * stored.shape[1])) ** 0.5
