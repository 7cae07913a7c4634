"""Text as batches: a stream and held-out samples over windows of tokens, and what a run measures a text corpus by.

Shape legend: L = S + 1 tokens read for a window of S positions · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from trainer.data.batch import Batch, LateBatch, make_batch
from trainer.data.protocols import TextSplits
from trainer.data.weights import Reduction
from trainer.data.windows import Windows

PROMPT_TOKENS = 8  # of a held-out document, after its prefix


class TextStream:
    """A `Stream` over `read(first, count)`, which returns the windows of samples first .. first + count - 1.

    reduction: gives labels weights, as `label_weights`."""

    def __init__(
        self, read: Callable[[int, int], Windows], shares: Mapping[str, float], reduction: Reduction = "token"
    ) -> None:
        self.shares = shares
        self._read, self._reduction = read, reduction

    def batch(self, first: int, count: int) -> Batch:
        if first < 0 or count < 1:
            raise ValueError(f"samples {first} .. {first + count - 1}: numbers start at 0")
        return make_batch(self._read(first, count), list(range(first, first + count)), self._reduction)


class TextHeldOut:
    """A `HeldOut` over the held-out windows of each source; a sample's number is its window's."""

    def __init__(self, text: TextSplits) -> None:
        self.sources: Sequence[str] = list(text.shares)
        self._text = text

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[LateBatch]:
        positions = self._text.positions("heldout", source, count * micro_batch)
        for first in range(0, len(positions), micro_batch):
            some = positions[first : first + micro_batch]
            yield LateBatch(some.tolist(), partial(self._batch, source, some))

    def _batch(self, source: str, positions: npt.NDArray[np.int64]) -> Batch:
        return make_batch(self._text.read_split("heldout", source, positions), positions.tolist())


def unigram_nats(text: TextSplits) -> dict[str, float | None]:
    """Cross-entropy of each source's held-out labels, in nats per token, under one unigram model of the training text;
    None for a source without a label.

    The model is the mean of the sources' add-one smoothed frequencies, weighted by their shares.
    """
    total = sum(text.shares.values())
    mixture_V = np.zeros(text.vocab_size)
    for source, share in text.shares.items():
        positions = text.positions("train", source, text.unigram_windows)
        windows = text.read_split("train", source, positions, media=False)
        counts_V = np.bincount(windows.tokens_BL[~windows.context_BL], minlength=text.vocab_size) + 1
        mixture_V += share / total * (counts_V / counts_V.sum())
    nats_V = -np.log(mixture_V)
    nats: dict[str, float | None] = {}
    for source in text.shares:
        positions = text.positions("heldout", source, text.unigram_windows)
        windows = text.read_split("heldout", source, positions, media=False)
        labels = windows.tokens_BL[:, 1:][windows.supervised_BS]
        nats[source] = float(nats_V[labels].mean()) if labels.size else None
    return nats


def prompts(text: TextSplits) -> dict[str, str]:
    """The prefix and the first words of a held-out document of each source, for a sample of text to start with."""
    texts = {}
    for source in text.shares:
        windows = text.read_split("heldout", source, np.array([0]), media=False)
        length = int(windows.context_BL[0].argmin()) + PROMPT_TOKENS
        texts[source] = text.tokenizer.decode(windows.tokens_BL[0, :length].tolist())
    return texts
