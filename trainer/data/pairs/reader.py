"""The reader of image-text pairs: any of them by its number, decoded, cut into patches and encoded. No torch here.

Which pair has which number is decided as for text (`trainer.data.mixture.index`): by quotas and permutations, from the
configuration and the seed alone.

Legend: P pairs of a batch · T patches of all its images · L tokens of all its captions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError, named_by
from trainer.data.media.images import DECODE_LIMIT, PatchRule, decode
from trainer.data.mixture.index import MixtureIndex
from trainer.data.pairs.index import PairIndex
from trainer.data.protocols import Split
from trainer.data.shards.tokenizer import Tokenizer
from trainer.storage.manifest import digest

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.config.model import VisionConfig

FORMAT = 1  # raise it with any change of what a number gives
MAX_NEIGHBOURS = 64  # that are tried in the place of a pair that cannot be read
ALL = "pairs"  # the one phase
MEASURED = 256  # captions of each source whose lengths are looked at

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """P images with their texts.

    patches: [T, 3, patch_size^2] uint8, of the images one after another. grids: rows and columns of patches of each.
    tokens: [L] of the texts, one after another, each with the token that ends it. lengths: [P] tokens of each. hashes:
    [P, 2] int64, of caption and image; pairs with one in common are duplicates. classes: [P, 2] int64, the class of an
    image and of a text; -1 for none. faults: a line for each pair that was unreadable and replaced.
    """

    patches: npt.NDArray[np.uint8]
    grids: list[tuple[int, int]]
    tokens: Ints
    lengths: Ints
    hashes: Ints
    classes: Ints
    faults: tuple[str, ...] = ()


class PairReader:
    """The sources of `data.pairs`, their training and held-out pairs, and the order of the former.

    rule: how images are cut. seed: of the order. samples: that the run reads. Raises DataError for an index or a
    tokenizer that cannot be read, a split without a pair, and a source that is drawn more often than its max_epochs.
    """

    def __init__(self, data: DataConfig, rule: PatchRule, *, seed: int, samples: int = 0) -> None:
        self.names, self.rule = list(data.pairs), rule
        self._data = data
        with named_by("data.tokenizer"):
            self.tokenizer = Tokenizer.load(Path(str(data.tokenizer)))
        self.indexes = {name: _open(f"data.pairs.{name}.path", data, one.path) for name, one in data.pairs.items()}
        self._first = {name: index.below(data.holdout_fraction) for name, index in self.indexes.items()}
        for name in self.names:
            for split in ("train", "heldout"):
                if not self.count(split, name):
                    key, remedy = f"data.pairs.{name}", "use another data.holdout_fraction, or more pairs"
                    text = f"{key} has {len(self.indexes[name])} pairs, and none in its {split} split; {remedy}"
                    raise DataError(text, where=key, value=len(self.indexes[name]), allowed=remedy)
        self.shares = {name: float(source.pairs) for name, source in data.pairs.items()}
        sizes = {name: self.count("train", name) for name in self.names}
        total = sum(source.pairs for source in data.pairs.values())
        self.index = MixtureIndex({ALL: total}, {ALL: self.shares}, sizes, seq_len=1, seed=seed)
        self._refuse_repeats(samples)
        rules = [dataclasses.astuple(rule), data.seq_len, data.holdout_fraction, self.tokenizer.state]
        made = {name: [source.pairs, self.indexes[name].manifest["checksum"]] for name, source in data.pairs.items()}
        self.fingerprint = digest([FORMAT, seed, made, json.loads(json.dumps(rules))])

    def count(self, split: Split, source: str) -> int:
        """Pairs of a split."""
        first = self._first[source]
        return first if split == "heldout" else len(self.indexes[source]) - first

    def read(self, first: int, count: int) -> Pairs:
        """Training samples first .. first + count - 1."""
        samples = np.arange(first, first + count)
        sources, _, positions = self.index.lookup(samples)
        found = []
        for sample, source, position in zip(samples.tolist(), sources.tolist(), positions.tolist(), strict=True):
            found.append(self._one("train", self.names[source], position, f"sample {sample}, "))
        return joined(found)

    def read_split(self, split: Split, source: str, positions: Ints | Sequence[int]) -> Pairs:
        """The pairs of a split at `positions`."""
        return joined([self._one(split, source, int(position), "") for position in positions])

    def positions(self, split: Split, source: str, count: int) -> Ints:
        """At most `count` positions, evenly spread over a split."""
        available = self.count(split, source)
        taken = min(available, count)
        return np.arange(taken) * available // max(1, taken)

    def cut_captions(self) -> dict[str, int]:
        """Source -> how many of `MEASURED` training captions, or of all, are longer than `data.seq_len`; without those
        where none is."""
        found = {}
        for name, index in self.indexes.items():
            found[name] = 0
            for row in index.rows(self.positions("train", name, MEASURED) + self._first[name]):
                with contextlib.suppress(DataError):  # reported when the pair is drawn
                    found[name] += len(self.tokenizer.encode(index.text(row))) >= self._data.seq_len
        return {name: count for name, count in found.items() if count}

    def _one(self, split: Split, source: str, position: int, sample: str) -> Pairs:
        """The pair at a position, or with data.on_fault=skip the next one that can be read."""
        size, first_error = self.count(split, source), None
        name = f"{sample}pair {position} of the {split} split of data.pairs.{source}"
        for place in itertools.islice(itertools.count(position), min(MAX_NEIGHBOURS + 1, size)):
            try:
                pair = self._read(split, source, place % size)
            except DataError as error:
                first_error = first_error or error.faults[0]
                if self._data.on_fault == "fail":
                    text = f"{name}: {first_error.text}; data.on_fault=skip reads another pair instead"
                    raise DataError([dataclasses.replace(first_error, text=text)]) from error
                continue
            if first_error is None:
                return pair
            line = f"{name} is replaced by pair {place % size}: {first_error.text}"
            return dataclasses.replace(pair, faults=(line,))
        assert first_error is not None
        text = f"{name} cannot be read, nor can those after it: {first_error.text}"
        raise DataError([dataclasses.replace(first_error, text=text)])

    def _read(self, split: Split, source: str, position: int) -> Pairs:
        index = self.indexes[source]
        (row,) = index.rows([position + (0 if split == "heldout" else self._first[source])])
        patches, grid = prepare(index, row, self.rule)
        tokens = encode(self.tokenizer, index.text(row), self._data.seq_len)
        hashes = np.array([[row["caption"], row["image"]]], np.uint64).view(np.int64)
        return Pairs(patches, [grid], tokens, np.array([len(tokens)]), hashes, np.full((1, 2), -1))

    def _refuse_repeats(self, samples: int) -> None:
        drawn = self.index.counts_before(samples) if samples else {}
        for name, count in drawn.items():
            available, most = self.count("train", name), self._data.pairs[name].max_epochs
            if count > available * most:
                key, epochs = f"data.pairs.{name}.max_epochs", count / available
                text = (
                    f"{key}={most:g}, but {samples:,} samples draw each of the {available:,} training pairs of "
                    f"data.pairs.{name} {epochs:.3g} times; use fewer steps, or a larger max_epochs"
                )
                raise DataError(text, where=key, value=most, allowed=f"{epochs:.3g} or more")


def patch_rule(data: DataConfig, vision: VisionConfig) -> PatchRule:
    """The rule by which images become what the tower takes, within `data.min_pixels` and `data.max_pixels`."""
    return PatchRule(vision.patch_size, vision.merge, vision.frames, data.min_pixels, data.max_pixels)


def _open(key: str, data: DataConfig, path: str) -> PairIndex:
    with named_by(key):
        return PairIndex(Path(data.root, path))


def prepare(index: PairIndex, row: np.void, rule: PatchRule) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """The patches and the grid of a pair's image. Raises DataError."""
    where = index.place(row)
    return rule.cut(decode(index.image(row), where=where, max_pixels=DECODE_LIMIT), where)


def encode(tokenizer: Tokenizer, text: str, seq_len: int) -> Ints:
    """The tokens of a text, the last one the token that ends it; cut to seq_len."""
    return np.array([*tokenizer.encode(text)[: seq_len - 1], tokenizer.eos_id], np.int64)


def joined(pairs: Sequence[Pairs]) -> Pairs:
    """One batch of one or more."""
    return Pairs(
        np.concatenate([pair.patches for pair in pairs]),
        [grid for pair in pairs for grid in pair.grids],
        np.concatenate([pair.tokens for pair in pairs]),
        np.concatenate([pair.lengths for pair in pairs]),
        np.concatenate([pair.hashes for pair in pairs]),
        np.concatenate([pair.classes for pair in pairs]),
        tuple(fault for pair in pairs for fault in pair.faults),
    )
