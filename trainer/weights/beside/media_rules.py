"""The rules by which a model prepares images and signals: those that its directory states, and the published ones.
No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config.model import InternViTConfig, ModelConfig, VisionConfig
from trainer.config.run_files import SOURCE
from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule
from trainer.data.media.processors import rule_of_processor
from trainer.data.media.rules import ImageKind, MediaRules, Rule, SignalKind, rule_from_json
from trainer.data.media.signals import SignalRule
from trainer.data.shards.tokenizer import Tokenizer
from trainer.weights.beside.media import RULES_FILE, chosen_rules, kept_media

# (before, placeholder, after) of the published tokenizers
KNOWN = {
    "image": (("<img>", "<IMG_CONTEXT>", "</img>"), ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")),
    "signal": (("<ts>", "<TS_CONTEXT>", "</ts>"), ("<|ts|>", "<TS_CONTEXT>", "<|/ts|>")),
}
MARKERS = ("before", "token", "after")


def known_marks(kind: str, tokenizer: Tokenizer, token: int | None) -> dict[str, str]:
    """The placeholder of a kind, and the markers around it, that the tokenizer has. token: the placeholder's id, where
    it is known."""
    names: dict[str, str] = {}
    for marks in reversed(KNOWN[kind]):
        here = {key: mark for key, mark in zip(MARKERS, marks, strict=True) if tokenizer.id_of(mark) is not None}
        # Of two spellings of the markers around one placeholder, the one that the tokenizer has.
        if "token" in here and token in (None, tokenizer.id_of(here["token"])) and len(here) >= len(names):
            names = here
    return names


def rule_of_tower(vision: VisionConfig | InternViTConfig) -> PatchRule | TileRule:
    """The published rule for a tower."""
    if isinstance(vision, VisionConfig):
        return PatchRule(vision.patch_size, vision.merge, vision.frames)
    return TileRule(vision.tile_size, vision.patch_size, vision.merge)


def signal_rule_of(directory: Path) -> SignalRule:
    """The rule that an export states; without one the published rule. Raises DataError."""
    rule = _stated(directory, "signal")
    if rule is None:
        return SignalRule("cut")  # all that published weights know
    if not isinstance(rule, SignalRule):
        raise _unreadable(directory / RULES_FILE, f"{type(rule).__name__} is not a rule of signals")
    return rule


def rules_of_directory(directory: Path, model: ModelConfig, tokenizer: Tokenizer | None) -> MediaRules:
    """The rules of a Hugging Face directory. Raises DataError for files that cannot be read."""

    def image() -> Rule:
        assert model.vision is not None
        return _stated(directory, "image") or rule_of_processor(rule_of_tower(model.vision), directory)

    return _rules(model, tokenizer, image, lambda: signal_rule_of(directory))


def rules_of_run(run_directory: Path, model: ModelConfig, tokenizer: Tokenizer | None) -> MediaRules:
    """The rules of a run: those of its corpora, or of the directory that it started from, or the published ones.

    Where corpora have several rules of a kind, the one with the largest share of samples. Raises HuggingFaceError or
    DataError for records that are damaged.
    """
    kept = {one.kind: one.rule for one in chosen_rules(kept_media(run_directory)).values()}
    of_source = rules_of_directory(run_directory / SOURCE, model, None)

    def image() -> Rule:
        assert of_source.image is not None
        return kept.get("image", of_source.image.rule)

    def signal() -> Rule:
        assert of_source.signal is not None
        return kept.get("signal", of_source.signal.rule)

    return _rules(model, tokenizer, image, signal)


def _rules(
    model: ModelConfig, tokenizer: Tokenizer | None, image: Callable[[], Rule], signal: Callable[[], Rule]
) -> MediaRules:
    images, signals = None, None
    if model.vision is not None and model.image_token is not None:
        rule = image()
        assert not isinstance(rule, SignalRule)
        images = ImageKind(rule, model.image_token, *_around("image", tokenizer, model.image_token))
    if model.signals is not None and model.signal_token is not None:
        rule = signal()
        assert isinstance(rule, SignalRule)
        signals = SignalKind(rule, model.signal_token, *_around("signal", tokenizer, model.signal_token))
    return MediaRules(images, signals)


def _around(kind: str, tokenizer: Tokenizer | None, token: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of the markers before and after a placeholder."""
    if tokenizer is None:
        return (), ()
    names = known_marks(kind, tokenizer, token)
    ids = {key: tokenizer.id_of(names[key]) if key in names else None for key in ("before", "after")}
    before, after = ((one,) if one is not None else () for one in (ids["before"], ids["after"]))
    return before, after


def _stated(directory: Path, kind: str) -> Any:
    """The rule in the file that `octavo export` writes; None where there is none. Raises DataError."""
    path = directory / RULES_FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8")).get(kind)
        return None if facts is None else rule_from_json(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, why: object) -> DataError:
    remedy = "the file that octavo export wrote"
    text = f"{path} cannot be read ({why}); restore {remedy}"
    return DataError(text, where=str(path), value=str(why), allowed=remedy)
