"""Chats as a run reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.batch import Batch, LateBatch, make_batch
from trainer.data.chats.prepare import Ints, prepare
from trainer.data.chats.reader import ChatReader
from trainer.data.chats.tokens import open_tokenizer
from trainer.data.protocols import ChatFiles, Data, TokenizerFile
from trainer.data.text import TextStream
from trainer.storage.progress import OnProgress

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.data.weights import Reduction


class ChatHeldOut:
    """A `HeldOut` over the held-out packs of each source; a sample's number is its pack's."""

    def __init__(self, reader: ChatReader) -> None:
        self.sources: Sequence[str] = list(reader.heldout)
        self._reader = reader

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[LateBatch]:
        positions = np.arange(min(count * micro_batch, self._reader.heldout[source].count))
        for first in range(0, len(positions), micro_batch):
            some = positions[first : first + micro_batch]
            yield LateBatch(some.tolist(), partial(self._batch, source, some))

    def _batch(self, source: str, positions: Ints) -> Batch:
        return make_batch(self._reader.read_heldout(source, positions), positions.tolist())


def open_chats(
    data: DataConfig,
    *,
    seed: int,
    reduction: Reduction,
    weights: Path | None,
    kept: Path | None,
    progress: OnProgress,
    warn: Callable[[str], None],
) -> tuple[Data, int]:
    """Open the sources of `data.chats`, and return the tokens of the vocabulary, too.

    weights: the directory of the published weights that the run starts from; kept: where the run keeps its tokenizer.
    warn: receives a line for each kind of record that is not trained on. Raises DataError and ChatError.
    """
    tokenizer = open_tokenizer(data, weights, kept)
    prepared = prepare(data, tokenizer, progress)
    for line in prepared.left_out():
        warn(line)
    ends = [number for number, _ in prepared.facts["ends"] if tokenizer.token(number) in tokenizer.control]
    end = ends[0] if ends else tokenizer.id_of(tokenizer.template.special_tokens.get("eos_token", "")) or 0
    reader = ChatReader(data, prepared, seed=seed, padding=end, warn=warn)
    template = tokenizer.template
    files = ChatFiles(dict(template.texts), dict(template.special_tokens), tuple(ends))
    opened = Data(
        stream=TextStream(reader.read, reader.shares, reduction),
        heldout=ChatHeldOut(reader),
        fingerprint=reader.fingerprint,
        tokenizer=TokenizerFile(tokenizer.path, tokenizer.token(end) or "", chat=files),
    )
    return opened, tokenizer.vocab_size
