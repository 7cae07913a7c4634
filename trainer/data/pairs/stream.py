"""Image-text pairs as a run reads them.

Legend: P pairs of a micro-batch · L tokens of all its captions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.data.batch import Batch, LateBatch, Media
from trainer.data.errors import named_by
from trainer.data.pairs.reader import MEASURED, Ints, PairReader, Pairs, patch_rule
from trainer.data.pairs.zero_shot import ZeroShot
from trainer.data.protocols import Data, TokenizerFile
from trainer.data.read_ahead import ReadAhead
from trainer.data.shards.tokenizer import tokenizer_file
from trainer.model.towers.vision import Images

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.config.model import VisionConfig


class PairStream:
    """A `Stream` over `read(first, count)`."""

    def __init__(self, read: Callable[[int, int], Pairs], shares: Mapping[str, float]) -> None:
        self.shares: Mapping[str, float] = shares
        self._read = read

    def batch(self, first: int, count: int) -> Batch:
        if first < 0 or count < 1:
            raise ValueError(f"samples {first} .. {first + count - 1}: numbers start at 0")
        return make_pair_batch(self._read(first, count), list(range(first, first + count)))


class PairHeldOut:
    """A `HeldOut` over the held-out pairs of each source; a sample's number is its position in the split."""

    def __init__(self, reader: PairReader) -> None:
        self.sources: Sequence[str] = reader.names
        self._reader = reader

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[LateBatch]:
        positions = self._reader.positions("heldout", source, count * micro_batch)
        for first in range(0, len(positions), micro_batch):
            some = positions[first : first + micro_batch]
            yield LateBatch(some.tolist(), functools.partial(self._batch, source, some))

    def _batch(self, source: str, positions: Ints) -> Batch:
        return make_pair_batch(self._reader.read_split("heldout", source, positions), positions.tolist())


class ZeroShotHeldOut:
    """A `HeldOut` over sets of images with classes; a batch has images and, beside them, sentences."""

    def __init__(self, sets: dict[str, ZeroShot]) -> None:
        self.sources: Sequence[str] = list(sets)
        self._sets = sets

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[LateBatch]:
        found = self._sets[source]
        images = min(found.images, count * micro_batch)
        for first in range(0, max(images, found.sentences), micro_batch):
            samples = list(range(first, first + micro_batch))
            yield LateBatch(samples, functools.partial(self._batch, source, samples, images))

    def _batch(self, source: str, samples: list[int], images: int) -> Batch:
        return make_pair_batch(self._sets[source].read(samples[0], len(samples), images), samples)


def make_pair_batch(pairs: Pairs, samples: list[int]) -> Batch:
    """Images as uint8, and captions as the documents of one packed sequence.

    `inputs` has ids and positions [1, L], and beside what the model takes `hashes` and `classes` [P, 2].
    """
    ends = np.cumsum(pairs.lengths)
    positions = np.arange(len(pairs.tokens)) - np.repeat(ends - pairs.lengths, pairs.lengths)
    return Batch(
        inputs={
            "ids": torch.from_numpy(pairs.tokens[None]),
            "positions": torch.from_numpy(positions[None]),
            "hashes": torch.from_numpy(pairs.hashes),
            "classes": torch.from_numpy(pairs.classes),
        },
        labels=None,
        cu_seqlens=torch.from_numpy(np.append(0, ends).astype(np.int32)),
        num_tokens=len(pairs.tokens),
        samples=samples,
        faults=pairs.faults,
        media=Media(Images(torch.from_numpy(pairs.patches), pairs.grids)),
    )


def open_pairs(
    data: DataConfig, vision: VisionConfig, *, seed: int, samples: int, warn: Callable[[str], None]
) -> tuple[Data, int]:
    """Open the sources of `data.pairs` and the sets of `data.zero_shot`, and check the hashes of their indexes unless
    `data.verify` is off. Also returns the tokens of the vocabulary. warn: receives a line for each source with captions
    that are cut. Raises DataError."""
    rule = patch_rule(data, vision)
    open_reader = functools.partial(PairReader, data, rule, seed=seed, samples=samples)
    reader = open_reader()
    sets = {}
    for name, path in data.zero_shot.items():
        with named_by(f"data.zero_shot.{name}"):
            sets[name] = ZeroShot(Path(data.root, path), reader.tokenizer, rule, data.seq_len)
    if data.verify != "off":
        for index in [*reader.indexes.values(), *(found.index for found in sets.values())]:
            index.verify()
    for name, count in reader.cut_captions().items():
        looked_at = min(MEASURED, reader.count("train", name))
        share = f"{count} of {looked_at} captions"
        warn(f"data.pairs.{name}: {share} have over data.seq_len={data.seq_len} tokens and are cut")
    tokenizer = reader.tokenizer
    opened = Data(
        stream=PairStream(ReadAhead(reader, open_reader, data.workers).read, reader.shares),
        heldout=PairHeldOut(reader),
        fingerprint=reader.fingerprint,
        zero_shot=ZeroShotHeldOut(sets) if sets else None,
        media={name: {"image": rule} for name in reader.names},
        tokenizer=TokenizerFile(tokenizer_file(Path(str(data.tokenizer))), tokenizer.end_of_document),
    )
    return opened, tokenizer.vocab_size
