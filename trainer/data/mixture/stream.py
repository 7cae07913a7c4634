"""A mixture as a run sees it: see `trainer.data.Data` for what each method promises."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainer.data.batch import Batch, make_batch
from trainer.data.errors import DataError
from trainer.data.mixture.reader import MixtureReader, damage
from trainer.data.read_ahead import ReadAhead, Windows

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.data.shards.tokenizer import Tokenizer

UNIGRAM_TOKENS = 2_000_000  # of each source that its unigram is counted on
PROMPT_TOKENS = 8  # of a held-out document, after its prefix

Ints = npt.NDArray[np.int64]


class MixtureData:
    """Windows of `data.seq_len` tokens, in an order decided by `seed`. Raises DataError as `MixtureReader` does, and
    for damage that `data.verify` finds, which goes to `warn` instead under `data.on_fault=skip`."""

    def __init__(
        self, data: DataConfig, directories: Mapping[str, Path], *, seed: int, warn: Callable[[str], None]
    ) -> None:
        open_reader = functools.partial(MixtureReader, data, directories, seed=seed)
        self._reader = open_reader()
        for split in (self._reader.train, self._reader.heldout):
            for name, shards in split.items():
                tell = (lambda fault, name=name: warn(damage(name, fault))) if data.on_fault == "skip" else None
                try:
                    shards.verify(data.verify, tell=tell)
                except DataError as error:
                    raise DataError(damage(name, str(error))) from error
        self._ahead = ReadAhead(self._reader, open_reader, data.workers)
        self._seq_len = data.seq_len
        self.sources = self._reader.names
        self.vocab_size = self._reader.vocab_size
        self.fingerprint = self._reader.fingerprint
        self._shares = {name: source.tokens for name, source in data.sources.items()}

    @property
    def tokenizer(self) -> Tokenizer:
        return self._reader.tokenizer

    def train_batch(self, first_sample: int, count: int) -> Batch:
        windows = self._ahead.read(first_sample, count)
        return _batch(windows, list(range(first_sample, first_sample + count)))

    def eval_batches(self, source: str, batches: int, micro_batch: int) -> Iterator[Batch]:
        places = _spread(self._reader.heldout[source].num_windows(self._seq_len), batches * micro_batch)
        for first in range(0, len(places), micro_batch):
            some = places[first : first + micro_batch]
            yield _batch(self._reader.read_split("heldout", source, some), some.tolist())

    def prompts(self) -> dict[str, str]:
        """The prefix and the first words of a held-out document of each source."""
        return {source: self._prompt(source) for source in self.sources}

    def _prompt(self, source: str) -> str:
        windows = self._reader.read_split("heldout", source, np.array([0]))
        length = int(windows.prefix_BL[0].argmin()) + PROMPT_TOKENS
        return self.tokenizer.decode(windows.tokens_BL[0, :length].tolist())

    def unigram_nats(self, source: str | None = None) -> float:
        total = sum(self._shares.values())
        mixture_V = sum(share / total * self._unigram(name) for name, share in self._shares.items())
        nats_V = -np.log(mixture_V)
        costs = {name: self._mean_cost(name, nats_V) for name in ([source] if source else self.sources)}
        if source is not None:
            return costs[source]
        return sum(self._shares[name] / total * cost for name, cost in costs.items())

    def _unigram(self, source: str) -> npt.NDArray[np.float64]:
        """Add-one smoothed frequencies of the tokens that are trained on."""
        shards = self._reader.train[source]
        places = _spread(shards.num_windows(self._seq_len), max(1, UNIGRAM_TOKENS // self._seq_len))
        windows = self._reader.read_split("train", source, places)
        counts_V = np.bincount(windows.tokens_BL[~windows.prefix_BL], minlength=self.vocab_size) + 1
        return counts_V / counts_V.sum()

    def _mean_cost(self, source: str, nats_V: npt.NDArray[np.float64]) -> float:
        """Mean over labels of the held-out split."""
        places = _spread(self._reader.heldout[source].num_windows(self._seq_len), UNIGRAM_TOKENS // self._seq_len)
        windows = self._reader.read_split("heldout", source, places)
        labels = windows.tokens_BL[:, 1:][~(windows.starts_BL | windows.prefix_BL)[:, 1:]]
        return float(nats_V[labels].mean())


def _batch(windows: Windows, samples: list[int]) -> Batch:
    batch = make_batch(windows.tokens_BL, windows.starts_BL, samples, windows.prefix_BL)
    return dataclasses.replace(batch, faults=windows.faults)


def _spread(available: int, wanted: int) -> Ints:
    """At most `wanted` places of `available`, evenly over them, so that a few see many documents."""
    count = min(available, wanted)
    return np.arange(count) * available // count
