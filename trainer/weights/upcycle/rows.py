"""Tables of embeddings or of the LM head with their rows in another order, and rows for new tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from trainer.storage.boxes import StoredTensor
from trainer.weights.hf_read import read_tensor, require_finite
from trainer.weights.upcycle.noise import Noise
from trainer.weights.upcycle.vocabulary import NEW

BLOCK_BYTES = 16 << 20  # bytes of the source in memory at one time


def moved_rows(
    stored: StoredTensor,
    rows: Sequence[int],
    known: Collection[int] | None,
    dtype: torch.dtype,
    noise: Noise,
    name: str,
) -> Iterator[Tensor]:
    """Make the table whose row i is row rows[i] of `stored`, in runs of rows.

    If rows[i] is NEW, row i is the mean of the rows `known` (None: all rows), with its own noise relative to their RMS.
    For any hidden state a new token is then as likely as the others are on average, and their probabilities hardly
    change (Hewitt 2021, Initializing new word embeddings for pretrained language models).
    """
    most = max(1, BLOCK_BYTES // (stored.nbytes // stored.shape[0]))
    mean, rms = _mean(stored, known, most) if NEW in rows else (torch.empty(0), 0.0)
    for first in range(0, len(rows), most):
        block = rows[first : first + most]
        made = torch.empty(len(block), stored.shape[1], dtype=dtype)
        for at, count in _runs(block):
            if block[at] == NEW:
                (made[at],) = noise.copies(mean, [f"{name}.{first + at}"], torch.float32, stored.name, rms)
            else:
                made[at : at + count] = _read(stored, block[at], count)
        yield made


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(at, count): rows that are adjacent in the source; new ones singly."""
    at = 0
    while at < len(rows):
        count = 1
        while rows[at] != NEW and at + count < len(rows) and rows[at + count] == rows[at] + count:
            count += 1
        yield at, count
        at += count


def _read(stored: StoredTensor, start: int, count: int) -> Tensor:
    values = read_tensor(stored, (slice(start, start + count), slice(0, stored.shape[1])))
    require_finite(values, stored)
    return values


def _mean(stored: StoredTensor, known: Collection[int] | None, most: int) -> tuple[Tensor, float]:
    """Mean [1, H], fp32, and root mean square of the rows `known`."""
    total, squares, number = torch.zeros(stored.shape[1], dtype=torch.float64), 0.0, 0
    for start in range(0, stored.shape[0], most):
        count = min(most, stored.shape[0] - start)
        wanted = [row for row in range(count) if known is None or start + row in known]
        values = _read(stored, start, count)[wanted].double()
        total += values.sum(0)
        squares += float(values.square().sum())
        number += len(wanted)
    return (total / number).float().unsqueeze(0), (squares / (number * stored.shape[1])) ** 0.5
