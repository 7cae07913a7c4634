"""Sources that do not fit together, the run or its published weights, as far as their files show it. No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from parallel.errors import Fault, one_of
from trainer.config.say import show
from trainer.data.errors import DataError
from trainer.data.media.rules import MediaRules, SignalKind
from trainer.data.mixture.index import MixtureIndex
from trainer.data.mixture.signals import most_tokens, widest_patch
from trainer.data.shards import files as shard_files
from trainer.data.shards.tokenizer import read_tokenizer
from trainer.data.shards.windows import Shards

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.config.model import ModelConfig

MODALITIES = {"image": "image", "signal": "time_series"}  # the modality of a source with a kind of media
MISSING_SHARE = 0.01  # a source may have so much less than its unique_tokens, which are round numbers
ROUNDING = Fraction(1, 50)  # by which a source may be drawn more often than its max_epochs: the above, and quotas


def tokenizers_of(sources: Mapping[str, Shards]) -> Iterator[Fault]:
    """Sources made with another tokenizer than the first one, or with another token before or after documents."""
    made = {name: shards.manifest["tokenizer"] for name, shards in sources.items()}
    first = next(iter(made))
    for name, by in made.items():
        key, remedy = f"data.sources.{name}", "tokenize it again"
        if by["sha256"] != made[first]["sha256"]:
            text = f"{key} was made with another tokenizer than data.sources.{first}; {remedy}"
            yield Fault(text, key, by["sha256"], remedy)
            continue
        for option, what in (("eos", "ends its documents with"), ("before", "opens"), ("after", "closes")):
            if by.get(option) != made[first].get(option):
                found, other = by.get(option), made[first].get(option)
                text = f"{key} {what} {found}, and data.sources.{first} {other}, with one tokenizer; {remedy}"
                yield Fault(text, key, found, remedy)


def repeated(data: DataConfig, train: Mapping[str, Shards], heldout: Mapping[str, Shards]) -> Iterator[Fault]:
    """Sources that hold the documents of another one: under another spelling of its path, through a link, as a copy,
    or tokenized again; also where one source trains on what another holds out."""
    owners: dict[str, str] = {}
    found: set[str] = set()
    for split in (train, heldout):
        for name, shards in split.items():
            for stem, digest in shards.digests().items():
                owner = owners.setdefault(digest, name)
                if owner == name or name in found:
                    continue
                found.add(name)
                key, path, remedy = f"data.sources.{name}.path", data.sources[name].path, "a directory of its own"
                here, there = shards.directory, train[owner].directory
                same = os.path.realpath(here) == os.path.realpath(there)
                what = "is the directory" if same else f"has {stem}.bin"
                text = f"{key}={path} {what} of data.sources.{owner} ({there}): the same documents; use {remedy}"
                yield Fault(text, key, path, remedy)


def too_often(data: DataConfig, index: MixtureIndex, windows: Mapping[str, int], samples: int) -> Iterator[Fault]:
    """Sources whose windows are drawn more often than their max_epochs among the first `samples`, at least all phases.

    An epoch is every window of the source once. Tokens at the end of a shard that fill no window are in none, so a
    source in small shards has fewer than its tokens allow.
    """
    samples = max(samples, index.samples)
    drawn = index.counts_before(samples)
    for name, source in data.sources.items():
        most = Fraction(str(source.max_epochs)) * windows[name]
        most = max(most * (1 + ROUNDING), most + 1)
        if drawn[name] > most:
            if index.counts_before(index.samples)[name] <= most:  # the run is too long, and may have started already
                yield _too_long(name, source.max_epochs, most, index, samples)
                continue
            epochs, key = drawn[name] / windows[name], f"data.sources.{name}.max_epochs"
            allowed = f"{-(-100 * drawn[name] // windows[name]) / 100:g} or more"
            text = (
                f"{key}={source.max_epochs:g}, but {samples} samples draw {drawn[name]} windows of data.seq_len="
                f"{data.seq_len} tokens from the {windows[name]} of data.sources.{name}, {epochs:.3g} epochs; use "
                f"{allowed}, fewer tokens, or larger shards (octavo tokenize --shard-tokens), whose ends lose less"
            )
            yield Fault(text, key, source.max_epochs, allowed)


def _too_long(name: str, max_epochs: float, most: Fraction, index: MixtureIndex, samples: int) -> Fault:
    """The fault of a run over more samples than `most` draws of a source allow, which the phases themselves do."""
    fits, too_many = index.samples, samples
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if index.counts_before(middle)[name] <= most else (fits, middle)
    allowed = f"{fits} samples or less (train.steps x train.global_batch)"
    text = (
        f"train.steps: {samples} samples draw data.sources.{name} more often than its max_epochs={max_epochs:g}; use "
        f"{allowed}; only a new run can have a larger max_epochs"
    )
    return Fault(text, "train.steps", samples, allowed)


def other_towers(data: DataConfig, directories: Mapping[str, Path], model: ModelConfig) -> Iterator[Fault]:
    """Sources whose images or signals were tokenized for other towers or placeholders than the model's, and those whose
    modality their documents do not have. A source whose manifest cannot be read is left to those who open it."""
    for name, directory in directories.items():
        key = f"data.sources.{name}.modality"
        try:
            manifest = shard_files.read_manifest(directory)
        except DataError:
            continue
        rules, modality = MediaRules.from_json(manifest.get("media", {})), data.sources[name].modality
        kinds = {MODALITIES[kind]: rule for kind, rule in rules.kinds.items() if manifest[f"{kind}s"]}
        modalities = tuple(kinds) or ("text",)
        if modality not in modalities:
            text = f"{key}={modality}, but its documents were tokenized as {' and '.join(modalities)}"
            yield Fault(f"{text}; use {one_of(modalities)}, or tokenize it again", key, modality, modalities)
            continue
        for kind in kinds.values():
            for tower_key, has, needs in kind.differences(model):
                what = "a tower for signals" if tower_key == "model.signals" else needs
                text = f"{tower_key}={show(has)}, but data.sources.{name} was tokenized for {what}"
                yield Fault(f"{text}; use {needs}, or tokenize it again", tower_key, has, (needs,))
        signal = kinds.get("time_series")
        if isinstance(signal, SignalKind) and model.signals is not None:
            has, needs = model.signals.patch_positions, widest_patch(directory, manifest, signal, model.signals)
            if needs > has:
                tower_key = "model.signals.patch_positions"
                text = f"{tower_key}={has}, but a signal of data.sources.{name} has patches of {needs} steps"
                remedy = f"use {needs} or more, or tokenize it again with a larger max_tokens of --signal"
                yield Fault(f"{text}; {remedy}", tower_key, has, f"{needs} or more")


def without_position(directories: Mapping[str, Path], model: ModelConfig) -> Iterator[str]:
    """A line for each source with signals of more tokens than the model's tower has positions."""
    for name, directory in directories.items():
        try:
            manifest = shard_files.read_manifest(directory)
        except DataError:
            continue
        if model.signals is None or not manifest.get("signals"):
            continue
        if (most := most_tokens(directory, manifest)) > model.signals.positions:
            yield (
                f"data.sources.{name} has signals of up to {most} tokens, but model.signals.positions="
                f"{model.signals.positions}: later tokens have no position"
            )


def other_vocabulary(corpus: Path, weights: Path, remedy: str | None = None) -> tuple[list[Fault], str | None]:
    """Compare the tokenizer that made a corpus with that of published weights: faults, and a line for the log.

    corpus, weights: directories; without a tokenizer.json beside the weights there is nothing to compare. A token with
    two ids, or an id of two tokens, is a fault; tokens that only the corpus has are a line. remedy: of a fault, where
    the corpus need not be tokenized again.
    """
    ours, theirs = corpus / shard_files.TOKENIZER, weights / shard_files.TOKENIZER
    if not theirs.is_file() or ours.read_bytes() == theirs.read_bytes():
        return [], None
    here, there = (read_tokenizer(path).get_vocab(with_added_tokens=True) for path in (ours, theirs))
    token_of = {number: token for token, number in there.items()}
    wrong = [t for t, number in here.items() if there.get(t, number) != number or token_of.get(number, t) != t]
    if wrong:
        first = min(wrong, key=lambda token: here[token])
        is_there = f"is {there[first]}" if first in there else f"does not exist, and {here[first]} is another token"
        remedy = remedy or f"tokenize the sources with --tokenizer {theirs}"
        text = (
            f"checkpoint.init_from={weights}: its tokenizer.json and {ours}, which made the corpus, are different: "
            f"{len(wrong):,} of {len(here):,} tokens do not agree. Token {first!r} is {here[first]} in the corpus; in "
            f"the weights' own it {is_there}; {remedy}, or start from the weights of the corpus' tokenizer"
        )
        return [Fault(text, "checkpoint.init_from", str(theirs), remedy)], None
    if extra := len(here.keys() - there.keys()):
        return [], f"{ours} has {extra:,} token(s) that {theirs} lacks: the published weights do not know them"
    return [], None
