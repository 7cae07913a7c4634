"""What a mixture's samples hold: its sources, checked against the recipe, and the windows of any samples.

No torch here: the processes that read ahead and the command line use it as it is.

n samples · L = S + 1 tokens read for a window of S
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.mixture.index import MixtureIndex
from trainer.data.protocols import Split
from trainer.data.shards import files as shard_files
from trainer.data.shards.prefixes import Prefixes
from trainer.data.shards.tokenizer import Tokenizer
from trainer.data.shards.windows import MAX_NEIGHBOURS, Shards
from trainer.data.windows import Windows

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

MISSING_SHARE = 0.01  # a source may have so much less than its unique_tokens, which are round numbers
Ints = npt.NDArray[np.int64]
UNIGRAM_TOKENS = 2_000_000  # of each source and split that unigram frequencies are counted on


class MixtureReader:
    """The sources of a mixture and the order of their windows.

    Raises DataError with everything that does not fit, a line each: a source that is missing or damaged, made with
    another tokenizer or other prefixes than the recipe has, or smaller than its `unique_tokens` say.
    """

    def __init__(self, data: DataConfig, directories: Mapping[str, Path], *, seed: int) -> None:
        """directories: where the shards of each source lie. seed: decides the order."""
        self.names, self._data = list(data.sources), data
        self.train = _open(directories, "train", data)
        self.heldout = _open(directories, "heldout", data)
        _raise_all([*_wrong_tokenizers(self.train), *self._wrong_sources()])
        first = self.train[self.names[0]]
        try:
            self.tokenizer = Tokenizer.load(first.directory / shard_files.TOKENIZER, first.manifest["tokenizer"]["eos"])
        except DataError as error:
            raise DataError(damage(self.names[0], str(error))) from error
        self.vocab_size = first.vocab_size
        self.shares: Mapping[str, float] = {name: float(source.tokens) for name, source in data.sources.items()}
        self.unigram_windows = max(1, UNIGRAM_TOKENS // data.seq_len)
        _raise_all([*Prefixes(data.prefixes, self.tokenizer).problems(), *self._too_short()])
        windows = {name: shards.num_windows(data.seq_len) for name, shards in self.train.items()}
        self.index = MixtureIndex.of(data, windows, seed)
        made_of: dict[str, Any] = {
            "sources": {name: shards.fingerprint for name, shards in self.train.items()},
            "weights": {name: source.phases for name, source in data.sources.items()},
            "phases": [[name, phase.tokens] for name, phase in data.phases.items()],  # their order counts
            "seq_len": data.seq_len,
            "seed": seed,
        }
        self.fingerprint = hashlib.sha256(shard_files.canonical(made_of)).hexdigest()

    def read(self, first_sample: int, count: int) -> Windows:
        """The windows of samples first_sample .. first_sample + count - 1.

        A window that cannot be read is a DataError, or under `data.on_fault=skip` gives way to the next one of its
        source that can, in its shard or at the beginning of another: a function of the sample and the files alone, so
        that every layout and every resumption reads the same.
        """
        samples = np.arange(first_sample, first_sample + count)
        sources, _, positions = self.index.lookup(samples)
        shape = (count, self._data.seq_len + 1)
        windows = Windows(np.empty(shape, np.int64), np.empty(shape, np.bool_), np.empty(shape, np.bool_))
        faults: list[str] = []
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            part = self._windows("train", self.names[source], positions[rows], samples[rows].tolist())
            windows.tokens_BL[rows], windows.starts_BL[rows] = part.tokens_BL, part.starts_BL
            windows.prefix_BL[rows] = part.prefix_BL
            faults += part.faults
        return dataclasses.replace(windows, faults=tuple(faults))

    def positions(self, split: Split, source: str, count: int) -> Ints:
        """Return at most `count` window numbers, spread evenly over a split, so that a few see many documents."""
        available = self._shards(split, source).num_windows(self._data.seq_len)
        taken = min(available, count)
        return np.arange(taken) * available // max(1, taken)

    def read_split(self, split: Split, source: str, positions: Ints) -> Windows:
        """Return a source's windows at `positions`; one that cannot be read is treated as `read` treats it."""
        return self._windows(split, source, positions, None)

    def _shards(self, split: Split, source: str) -> Shards:
        return (self.train if split == "train" else self.heldout)[source]

    def _windows(self, split: Split, name: str, positions: Ints, samples: Sequence[int] | None) -> Windows:
        shards = self._shards(split, name)
        try:
            return shards.read(positions, self._data.seq_len)
        except DataError:  # one of them: each for itself
            told = ["" if samples is None else f"sample {sample}, " for sample in samples or positions]
            parts = [
                self._one(shards, int(position), f"{sample}window {position} of the {split} split of source '{name}'")
                for position, sample in zip(positions.tolist(), told, strict=True)
            ]
        return Windows(
            np.concatenate([part.tokens_BL for part in parts]),
            np.concatenate([part.starts_BL for part in parts]),
            np.concatenate([part.prefix_BL for part in parts]),
            tuple(fault for part in parts for fault in part.faults),
        )

    def _one(self, shards: Shards, position: int, what: str) -> Windows:
        """The window at `position` or the next that can be read."""
        why = ""
        for place in itertools.chain([position], shards.instead_of(position, self._data.seq_len)):
            try:
                found = shards.read(np.array([place]), self._data.seq_len)
            except DataError as error:
                why = why or str(error)
                if self._data.on_fault == "fail":
                    raise DataError(f"{what}: {why}; data.on_fault=skip goes on with another window") from error
                continue
            return (
                dataclasses.replace(found, faults=(f"{what} is replaced by window {place}: {why}",)) if why else found
            )
        raise DataError(f"{what} cannot be read, nor {MAX_NEIGHBOURS} windows of any shard of it: {why}")

    def _too_short(self) -> Iterator[str]:
        for name in self.names:
            for split, shards in (("training", self.train[name]), ("held-out", self.heldout[name])):
                if shards.num_windows(self._data.seq_len) == 0:
                    yield (
                        f"data.seq_len={self._data.seq_len} is longer than the {split} split of data.sources.{name} "
                        f"({shards.num_tokens} tokens); use less, or a larger source or share to hold out"
                    )

    def _wrong_sources(self) -> Iterator[str]:
        """What the manifests say otherwise than the recipe."""
        for name, source in self._data.sources.items():
            manifest, key = self.train[name].manifest, f"data.sources.{name}"
            if manifest["domain"] != source.domain:
                yield f"{key}.domain={source.domain}: its shards were made as {manifest['domain']}"
            texts = self._data.prefixes.get(source.prefix, [])
            made = manifest["prefix"]["texts"] if manifest["prefix"] else []
            if made != texts:
                yield (
                    f"{key}.prefix={source.prefix}: its shards were made with {len(made)} other texts than the "
                    f"{len(texts)} of data.prefixes.{source.prefix}; tokenise it again, or give its texts"
                )
            tokens = self.train[name].num_tokens
            if tokens < source.unique_tokens * (1 - MISSING_SHARE):
                yield f"{key}.unique_tokens={source.unique_tokens}: its shards have {tokens}; use {tokens} or less"


def damage(source: str, fault: str) -> str:
    """A file of a source that is not as it was written, in a line with the source's key and what can be done."""
    return f"data.sources.{source}: {fault}; {shard_files.REMEDY}"


def _open(directories: Mapping[str, Path], split: Split, data: DataConfig) -> dict[str, Shards]:
    opened, problems = {}, []
    for name, directory in directories.items():
        try:
            opened[name] = Shards(directory, split, reader=data.reader, cut_short=data.on_fault == "skip")
        except DataError as error:
            problems.append(f"data.sources.{name}: {error}")
    _raise_all(problems)
    return opened


def _raise_all(problems: Sequence[str]) -> None:
    if problems:
        raise DataError("\n".join(problems))


def _wrong_tokenizers(sources: Mapping[str, Shards]) -> Iterator[str]:
    hashes = {name: shards.manifest["tokenizer"]["sha256"] for name, shards in sources.items()}
    first, expected = next(iter(hashes.items()))
    for name, found in hashes.items():
        if found != expected:
            yield f"data.sources.{name} was made with another tokenizer than data.sources.{first}: tokenise it again"
