"""The reader of a mixture: its sources, checked against the recipe, and the windows of any samples.

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

from parallel.errors import Fault
from trainer.data.errors import DataError
from trainer.data.media.packs import FORMAT as PACKS_FORMAT
from trainer.data.media.rules import Rule
from trainer.data.media.shards import MediaShards
from trainer.data.mixture import checks
from trainer.data.mixture.index import MixtureIndex
from trainer.data.protocols import Split, TokenizerFile
from trainer.data.shards import files as shard_files
from trainer.data.shards.prefixes import Prefixes
from trainer.data.shards.tokenizer import Tokenizer
from trainer.data.shards.windows import MAX_NEIGHBOURS, Shards
from trainer.data.windows import Windows, joined

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

UNIGRAM_TOKENS = 2_000_000  # of each source and split that unigram frequencies are counted on

Ints = npt.NDArray[np.int64]


class MixtureReader:
    """The sources of a mixture and the order of their windows.

    Raises DataError with everything that does not fit: a source that is missing or corrupt, made with another tokenizer
    or other prefixes than the recipe has, smaller than its `unique_tokens`, drawn more often than its `max_epochs`, or
    made of the documents of another.
    """

    def __init__(self, data: DataConfig, directories: Mapping[str, Path], *, seed: int, samples: int = 0) -> None:
        """directories: of each source's shards. seed: decides the order of the samples. samples: that the run reads,
        if these are more than the phases have."""
        self.names, self._data = list(data.sources), data
        self.train = _open(directories, "train", data)
        self.heldout = _open(directories, "heldout", data)
        faults = [*checks.tokenizers_of(self.train), *checks.repeated(data, self.train, self.heldout)]
        _raise_all([*faults, *self._wrong_sources()])
        first = self.train[self.names[0]]
        made = first.manifest["tokenizer"]
        before = tuple(made.get("before", ()))
        self.tokenizer_file = TokenizerFile(first.directory / shard_files.TOKENIZER, made["eos"], before)
        try:
            self.tokenizer = Tokenizer.load(
                self.tokenizer_file.path, made["eos"], special_text=made.get("special_text", "spell"), before=before
            )
        except DataError as error:
            raise DataError([with_source(self.names[0], error.faults[0])]) from error
        self.vocab_size = first.vocab_size
        every = [shards.rules.placeholders for shards in self.train.values() if isinstance(shards, MediaShards)]
        self._placeholders = np.array(sorted({token for tokens in every for token in tokens}), np.int64)
        self.shares: Mapping[str, float] = {name: float(source.tokens) for name, source in data.sources.items()}
        self.unigram_windows = max(1, UNIGRAM_TOKENS // data.seq_len)
        _raise_all([*Prefixes(data.prefixes, self.tokenizer).faults(), *self._too_short()])
        if data.on_fault == "fail":
            _raise_all([*self.too_large()])
        self.windows = {name: shards.num_windows(data.seq_len) for name, shards in self.train.items()}
        self.index = MixtureIndex.of(data, self.windows, seed)
        _raise_all([*checks.too_often(data, self.index, self.windows, samples)])
        made_of: dict[str, Any] = {
            "sources": {name: shards.fingerprint for name, shards in self.train.items()},
            "weights": {name: source.phases for name, source in data.sources.items()},
            "phases": [[name, phase.tokens] for name, phase in data.phases.items()],  # their order counts
            "seq_len": data.seq_len,
            "seed": seed,
        }
        if any(isinstance(shards, MediaShards) for shards in self.train.values()):
            made_of["packs"] = PACKS_FORMAT
        self.fingerprint = hashlib.sha256(shard_files.canonical(made_of)).hexdigest()

    def media_rules(self) -> dict[str, dict[str, Rule]]:
        """The rule of each kind of media (image, signal) that a source has, by source."""
        return {
            name: {kind: of.rule for kind, of in shards.rules.kinds.items() if shards.manifest.get(f"{kind}s")}
            for name, shards in self.train.items()
            if isinstance(shards, MediaShards)
        }

    def epochs(self, samples: int) -> dict[str, float]:
        """Return the epochs of each source among the first `samples`: its draws over its windows."""
        return {name: drawn / self.windows[name] for name, drawn in self.index.counts_before(samples).items()}

    def read(self, first_sample: int, count: int, *, media: bool = True) -> Windows:
        """Return the windows of samples first_sample .. first_sample + count - 1.

        media: False leaves images and signals unread.

        A window that cannot be read raises DataError; under `data.on_fault=skip` it is replaced by the next readable
        one of its source, in its shard or at the start of another: a function of the sample and the files alone, so
        that every layout and every start reads the same. A document with an image or signal that cannot be read is
        left out of its pack alone.
        """
        samples = np.arange(first_sample, first_sample + count)
        sources, _, positions = self.index.lookup(samples)
        parts = []
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            part = self._read("train", self.names[source], positions[rows], samples[rows].tolist(), media)
            parts.append((rows.tolist(), part))
        return joined(parts, count)

    def positions(self, split: Split, source: str, count: int) -> Ints:
        """Return at most `count` window numbers, spread evenly over a split, so that a few see many documents."""
        available = self._shards(split, source).num_windows(self._data.seq_len)
        taken = min(available, count)
        return np.arange(taken) * available // max(1, taken)

    def read_split(self, split: Split, source: str, positions: Ints, *, media: bool = True) -> Windows:
        """Return a source's windows at `positions`; one that cannot be read is treated as `read` treats it."""
        return self._read(split, source, positions, None, media)

    def _shards(self, split: Split, source: str) -> Shards:
        return (self.train if split == "train" else self.heldout)[source]

    def _read(self, split: Split, name: str, positions: Ints, samples: Sequence[int] | None, media: bool) -> Windows:
        shards = self._shards(split, name)
        try:
            found = self._windows(shards, positions, media)
        except DataError:
            found = None
        if found is None or found.faults:  # of one or more of them: read each on its own, so that its line names it
            of = f"the {split} split of source '{name}'"
            names = [f"window {position} of {of}" for position in positions.tolist()]
            if samples is not None:
                names = [f"sample {sample}, {window}" for sample, window in zip(samples, names, strict=True)]
            parts = [
                self._read_one(shards, position, window, of, media)
                for position, window in zip(positions.tolist(), names, strict=True)
            ]
            return joined([([row], part) for row, part in enumerate(parts)], len(parts))
        return found

    def _windows(self, shards: Shards, positions: Ints, media: bool) -> Windows:
        """Windows whose placeholders are those of their images and signals. Raises DataError."""
        windows = shards.read(positions, self._data.seq_len, media=media)
        if not self._placeholders.size or not media:
            return windows
        counts_B = np.isin(windows.tokens_BL[:, :-1], self._placeholders).sum(axis=1)
        for medium in windows.media:
            counts_B[medium.row] -= medium.tokens
        if counts_B.any():
            row = int(np.flatnonzero(counts_B)[0])
            where, count = str(shards.directory), int(counts_B[row])
            text = f"{where}: window {positions[row]} has {count} placeholders of images or signals that have none"
            remedy = "tokenize the source again with --special-text spell"
            raise DataError(f"{text}; {remedy}", where=where, value=count, allowed=remedy)
        return windows

    def _read_one(self, shards: Shards, position: int, window: str, of: str, media: bool) -> Windows:
        """Return the window at `position` or the next readable one. window, of: its name and its split's in lines."""
        fault: Fault | None = None  # of the window itself
        for place in itertools.chain([position], shards.instead_of(position, self._data.seq_len)):
            try:
                found = self._windows(shards, np.array([place]), media)
            except DataError as error:
                fault = fault or error.faults[0]
                if self._data.on_fault == "fail":
                    instead = (
                        "leaves out what is damaged"
                        if isinstance(shards, MediaShards)
                        else "reads another window instead"
                    )
                    text = f"{window}: {fault.text}; data.on_fault=skip {instead}"
                    raise DataError([dataclasses.replace(fault, text=text)]) from error
                continue
            # The same whenever the document comes up, whatever the sample, so that a run can say it once.
            lines = [f"{of}, {line}" for line in found.faults]
            if fault is not None:
                lines.insert(0, f"{window} is replaced by window {place}: {fault.text}")
            return dataclasses.replace(found, faults=tuple(lines))
        assert fault is not None
        text = f"{window} cannot be read, nor can {MAX_NEIGHBOURS} windows of any of its shards: {fault.text}"
        raise DataError([dataclasses.replace(fault, text=text)])

    def _too_short(self) -> Iterator[Fault]:
        for name in self.names:
            for split, shards in (("training", self.train[name]), ("held-out", self.heldout[name])):
                if shards.num_windows(self._data.seq_len) > 0:
                    continue
                seq_len, where, count = (
                    self._data.seq_len,
                    f"the {split} split of data.sources.{name}",
                    shards.num_tokens,
                )
                if isinstance(shards, MediaShards) and shards.packs(seq_len).dropped:
                    tokens = shards.largest_medium(seq_len)[1]
                    allowed = f"{tokens} or more"
                    text = (
                        f"data.seq_len={seq_len} is too short for every document of {where}: their images or signals "
                        f"are longer than a window; use {allowed}, or tokenize it again with smaller images"
                    )
                    yield Fault(text, "data.seq_len", seq_len, allowed)
                elif count < 2:
                    allowed = "a larger source" if split == "training" else "a larger --heldout"
                    text = (
                        f"{where} has {count} tokens, which is not a window of any length; tokenize it with {allowed}"
                    )
                    yield Fault(text, f"data.sources.{name}", count, allowed)
                else:
                    allowed = f"{count - 1} or less"
                    text = (
                        f"data.seq_len={seq_len} is longer than {where} ({count} tokens); use {allowed}, a larger "
                        "source, or hold out a larger share"
                    )
                    yield Fault(text, "data.seq_len", seq_len, allowed)

    def too_large(self) -> Iterator[Fault]:
        """Yield the splits with documents whose image or signal does not fit into a window."""
        for split, every in (("training", self.train), ("held-out", self.heldout)):
            for name, shards in every.items():
                if isinstance(shards, MediaShards) and (count := shards.packs(self._data.seq_len).dropped):
                    where, tokens = shards.largest_medium(self._data.seq_len)
                    text = (
                        f"data.seq_len={self._data.seq_len} is too short for {count} documents of the {split} split of "
                        f"data.sources.{name}, such as {where}: one of their images or signals is longer than a "
                        f"window; use {tokens} or more, smaller images, or data.on_fault=skip, which leaves them out"
                    )
                    yield Fault(text, "data.seq_len", self._data.seq_len, f"{tokens} or more")

    def _wrong_sources(self) -> Iterator[Fault]:
        """Yield the keys of the recipe that differ from the manifests."""
        for name, source in self._data.sources.items():
            manifest, key = self.train[name].manifest, f"data.sources.{name}"
            if manifest["domain"] != source.domain:
                made = manifest["domain"]
                text = f"{key}.domain={source.domain}, but its shards were made with domain {made}; use {made}"
                yield Fault(text, f"{key}.domain", source.domain, (made,))
            texts = self._data.prefixes.get(source.prefix, [])
            found = manifest["prefix"]["texts"] if manifest["prefix"] else []
            if found != texts:
                text = (
                    f"{key}.prefix={source.prefix}: the {len(found)} texts in its shards differ from the {len(texts)} "
                    f"of data.prefixes.{source.prefix}; tokenize the source again, or use the texts of its manifest"
                )
                yield Fault(text, f"{key}.prefix", source.prefix, tuple(found))
            tokens = self.train[name].num_tokens
            if tokens < source.unique_tokens * (1 - checks.MISSING_SHARE):
                text = f"{key}.unique_tokens={source.unique_tokens}, but its shards have {tokens}; use {tokens} or less"
                yield Fault(text, f"{key}.unique_tokens", source.unique_tokens, f"{tokens} or less")


def with_source(source: str, fault: Fault) -> Fault:
    """The fault of a file, with its source's key and the remedy in the text."""
    return dataclasses.replace(fault, text=f"data.sources.{source}: {fault.text}; {shard_files.REMEDY}")


def _open(directories: Mapping[str, Path], split: Split, data: DataConfig) -> dict[str, Shards]:
    opened: dict[str, Shards] = {}
    faults: list[Fault] = []
    for name, directory in directories.items():
        try:
            opened[name] = open_shards(directory, split, data)
        except DataError as error:
            faults += [dataclasses.replace(one, text=f"data.sources.{name}: {one.text}") for one in error.faults]
    _raise_all(faults)
    return opened


def open_shards(directory: Path, split: Split, data: DataConfig) -> Shards:
    """The windows of a split of a source, or its packs where it has images or signals. Raises DataError."""
    cut_short = data.on_fault == "skip"
    if "media" not in shard_files.read_manifest(directory):
        return Shards(directory, split, reader=data.reader, cut_short=cut_short)
    return MediaShards(
        directory, split, reader=data.reader, cut_short=cut_short, leave_out=cut_short, cache=Path(data.cache_dir)
    )


def _raise_all(faults: Sequence[Fault]) -> None:
    if faults:
        raise DataError(faults)
