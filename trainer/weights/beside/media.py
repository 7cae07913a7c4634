"""The rules by which a run's images and signals were prepared: kept in the run's directory, written with its exports.
No torch here.

RUN_DIR/media/manifest.json   each rule with its sources and their shares of the run's samples, and a hash of it all

An export has them in files that other programs read:

preprocessor_config.json   images: what transformers' AutoImageProcessor loads
media_rules.json           images and signals: the rules themselves, and what they do with unusual input
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.run_files import MEDIA_DIRECTORY, MEDIA_FACT
from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule
from trainer.data.media.processors import (
    PREPROCESSOR,
    PROCESSOR,
    SECTION,
    changed_processor,
    processor_files,
    processor_of_rule,
    rule_of_processor,
)
from trainer.data.media.rules import Rule, rule_from_json, rule_to_json
from trainer.data.media.signals import SignalRule
from trainer.data.media.statements import options, statements
from trainer.storage.atomic import TargetExistsError, atomic_directory
from trainer.storage.manifest import CHECKPOINT, CorruptError
from trainer.weights.beside.tokenizer import json_bytes
from trainer.weights.hf_files import HuggingFaceError

RULES_FILE = "media_rules.json"
TITLES = {"image": "Images", "signal": "Signals"}
SERVED = (
    "signals were read with long=adapt, which published serving code does not have: it cuts signals after 240,000 "
    "steps and does not widen patches; for such code, tokenize with --signal long=cut"
)


@dataclass(frozen=True)
class Kept:
    """A rule of a run, and the part of its samples from each source that has it."""

    kind: str
    rule: Rule
    sources: Mapping[str, float]


@dataclass(frozen=True)
class ExportedMedia:
    """The form of the rules in an export. files: beside the weights, some instead of those of the run's source. card:
    lines of its README.md. said: for the terminal; empty without any."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    card: list[str] = field(default_factory=list)
    said: str = ""
    warnings: list[str] = field(default_factory=list)


def keep_media(run_directory: Path, media: Mapping[str, Mapping[str, Rule]], shares: Mapping[str, float]) -> None:
    """Write the rules of a run's sources into its directory. Raises HuggingFaceError."""
    total = sum(shares.values())
    found: dict[str, list[dict[str, Any]]] = {}
    for source, rules in media.items():
        for kind, rule in rules.items():
            entries, facts = found.setdefault(kind, []), rule_to_json(rule)
            entry = next((one for one in entries if {key: one[key] for key in facts} == facts), None)
            if entry is None:
                entries.append(entry := {**facts, "sources": {}})
            entry["sources"][source] = shares[source] / total
    target = run_directory / MEDIA_DIRECTORY
    try:
        if target.is_dir() and _facts(target) == found:
            return
        CHECKPOINT.remove_directory(target, MEDIA_FACT)
        with atomic_directory(target) as temporary:
            CHECKPOINT.write(temporary, {MEDIA_FACT: found}, {})
    except TargetExistsError as error:
        remedy = "another run.dir"
        raise HuggingFaceError(
            f"{error.path}, where the run stores the rules of its media, holds other files; move them away, or use "
            f"{remedy}",
            where=str(error.path), allowed=remedy,
        ) from None  # fmt: skip
    except OSError as error:
        remedy = "a writable run directory, with enough space"
        text = f"{target} cannot be written: {error.strerror or error}; use {remedy}"
        raise HuggingFaceError(text, where=str(target), value=error.strerror, allowed=remedy) from error


def _facts(directory: Path) -> Any:
    """The rules in a record; None where it is damaged."""
    try:
        return CHECKPOINT.read(directory).get(MEDIA_FACT)
    except CorruptError:
        return None


def kept_media(run_directory: Path) -> list[Kept]:
    """The rules that a run kept; none for one without media. Raises HuggingFaceError where they are damaged."""
    directory = run_directory / MEDIA_DIRECTORY
    if not directory.is_dir():
        return []
    try:
        facts = CHECKPOINT.read(directory)[MEDIA_FACT]
    except CorruptError as damage:
        remedy = f"the file as the run wrote it, or no {directory}: the next start of the run writes it again"
        raise HuggingFaceError(
            f"the record of the rules of the run's media is damaged: {damage}; use {remedy}",
            where=str(damage.path),
            value=damage.problem,
            allowed=remedy,
        ) from None
    return [Kept(kind, rule_from_json(entry), entry["sources"]) for kind, entries in facts.items() for entry in entries]


def chosen_rules(kept: Sequence[Kept]) -> dict[str, Kept]:
    """By kind, the rule with the largest share of samples; of equal ones the first."""
    chosen: dict[str, Kept] = {}
    for one in kept:
        if one.kind not in chosen or sum(one.sources.values()) > sum(chosen[one.kind].sources.values()):
            chosen[one.kind] = one
    return chosen


def exported_media(run_directory: Path, source: Path | None) -> ExportedMedia:
    """The files and lines of an export. source: the directory that the run kept of the weights that it started from.

    Where sources of a kind have several rules, the one with the largest share of samples is written, with a warning. A
    processor of the source that does what the rule says stays as it is, byte for byte; another one is changed, also
    with a warning: the tower was trained on what the rule makes.

    Raises HuggingFaceError for a record that is damaged.
    """
    kept = kept_media(run_directory)
    if not kept:
        return ExportedMedia()
    chosen = chosen_rules(kept)
    warnings = [*_several(kept, chosen)]
    files: dict[str, Path | bytes] = {}
    if "image" in chosen:
        rule = chosen["image"].rule
        assert not isinstance(rule, SignalRule)
        new, lines = _processors(rule, source)
        files |= new
        warnings += lines
    if "signal" in chosen and getattr(chosen["signal"].rule, "long", "") == "adapt":
        warnings.append(SERVED)
    files[RULES_FILE] = json_bytes(
        {kind: {**rule_to_json(one.rule), "stated": statements(one.rule)} for kind, one in chosen.items()}
    )
    said = ", ".join(f"{TITLES[kind].lower()} by {type(one.rule).__name__}" for kind, one in chosen.items())
    return ExportedMedia(files, [*_card(chosen)], f"{said}; {RULES_FILE} states the rules", warnings)


def _several(kept: Sequence[Kept], chosen: Mapping[str, Kept]) -> Iterator[str]:
    for one in kept:
        if (first := chosen[one.kind]) is not one:
            yield (
                f"{one.kind}s of {', '.join(one.sources)} were prepared by {options(one.rule)}; the export states the "
                f"rule of {', '.join(first.sources)}, {options(first.rule)}"
            )


def _processors(rule: PatchRule | TileRule, source: Path | None) -> tuple[dict[str, Path | bytes], list[str]]:
    """The files that AutoImageProcessor reads, where those of the source do not do what the rule says, and a line for
    each that had to be changed."""
    warnings = []
    if isinstance(rule, TileRule) and not rule.thumbnail:
        warnings.append("images were prepared without the whole image as a last tile; published processors add it")
    found = {} if source is None else processor_files(source)
    if source is None or not found:
        return {PREPROCESSOR: json_bytes(processor_of_rule(rule))}, warnings
    try:
        theirs = rule_of_processor(rule, source)
        if theirs == rule:
            return {}, warnings
        does = options(theirs)
    except DataError as error:
        does = error.faults[0].text
    files: dict[str, Path | bytes] = {}
    for name, whole in found.items():
        section = whole[SECTION] if name == PROCESSOR else whole
        new = changed_processor(rule, section)
        files[name] = json_bytes({**whole, SECTION: new} if name == PROCESSOR else new)
    warnings.append(
        f"{' and '.join(files)} of the run's source is changed: the run's images were prepared by {options(rule)}, and "
        f"it had {does}"
    )
    return files, warnings


def _card(chosen: Mapping[str, Kept]) -> Iterator[str]:
    yield from ("## Images and signals", "", f"As in training; `{RULES_FILE}` has the rules.")
    for kind, one in chosen.items():
        yield from ("", f"{TITLES[kind]}: {options(one.rule)}.", "", *(f"- {line}" for line in statements(one.rule)))
        if kind == "image":
            yield f"- `{PREPROCESSOR}` has the sizes; transformers' Pillow back end then gives the same pixels for"
            yield "  ordinary 8-bit images, opened with Pillow; convert others by the rules above first"
        elif isinstance(one.rule, SignalRule) and one.rule.long == "adapt":
            yield f"- {SERVED}"
