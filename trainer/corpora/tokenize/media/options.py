"""The rules of media from words: `rule=patches max_pixels=1003520`, and from a published model's directory."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parallel.errors import one_of
from trainer.config.model import InternViTConfig, VisionConfig
from trainer.config.say import did_you_mean
from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule, TileRule
from trainer.data.media.rules import IMAGE_RULES, ImageKind, MediaRules
from trainer.data.shards.tokenizer import Tokenizer
from trainer.weights.hf_files import CONFIG, HuggingFaceError
from trainer.weights.towers.config import multimodal_config_from_huggingface

# (before, placeholder, after) of the published tokenizers
IMAGE_MARKS = (("<img>", "<IMG_CONTEXT>", "</img>"), ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"))
MARKS = ("token", "before", "after")
PREPROCESSOR = "preprocessor_config.json"
NUMBERS = "a whole number"
Words = Mapping[str, str]


def read_words(option: str, given: Sequence[str]) -> dict[str, str]:
    """The keys and values of an option, which may be given several times. Raises DataError for a word without `=`."""
    found: dict[str, str] = {}
    for word in (word for some in given for word in shlex.split(some)):
        key, equals, value = word.partition("=")
        if not equals:
            text = f"{option} {word!r} is not KEY=VALUE; use for example rule=patches"
            raise DataError(text, where=option, value=word, allowed="KEY=VALUE")
        found[key] = value
    return found


def media_rules(tokenizer: Tokenizer, *, image: Words | None = None, published: Path | None = None) -> MediaRules:
    """The rules of a corpus. image: what `--image` gives. published: a directory with the config.json of a model, whose
    rules and placeholders hold where `image` does not say otherwise. Raises DataError."""
    words = dict(image or {})
    rule, token = _published_images(published) if published is not None else (None, None)
    name = words.pop("rule", None)
    if name is not None and name not in IMAGE_RULES:
        allowed = tuple(IMAGE_RULES)
        text = f"--image rule={name} is not a rule; use {one_of(allowed)}{did_you_mean(name, allowed)}"
        raise DataError(text, where="--image", value=name, allowed=allowed)
    if rule is None or (name is not None and not isinstance(rule, IMAGE_RULES[name])):
        rule = IMAGE_RULES[name or "patches"]()
    marks = {key: words.pop(key) for key in MARKS if key in words}
    limit = words.pop("decode_limit", None)
    known = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    for key in words:
        if key not in known:
            allowed = ("rule", *MARKS, "decode_limit", *known)
            text = f"--image {key}: there is no such key; use {one_of(allowed)}{did_you_mean(key, allowed)}"
            raise DataError(text, where="--image", value=key, allowed=allowed)
    rule = dataclasses.replace(rule, **{key: _value(key, value, known[key]) for key, value in words.items()})
    kind = ImageKind(rule, *_marks(tokenizer, marks, token))
    if limit is not None:
        kind = dataclasses.replace(kind, decode_limit=_value("decode_limit", limit, 1))
    return MediaRules(kind)


def _value(key: str, text: str, like: Any) -> Any:
    """A value of the type of `like`: a whole number, true or false, or numbers with commas."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, tuple):
            found = tuple(float(number) for number in text.split(","))
            if len(found) != len(like):
                raise ValueError
            return found
        if (number := int(text)) < 1:
            raise ValueError
        return number
    except (KeyError, ValueError):
        allowed = "true or false" if isinstance(like, bool) else "three numbers" if isinstance(like, tuple) else NUMBERS
        raise DataError(f"--image {key}={text}: use {allowed}", where="--image", value=text, allowed=allowed) from None


def _marks(tokenizer: Tokenizer, given: Words, token: int | None) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The placeholder and the markers around it. token: the placeholder of the published model."""
    known = [
        marks for marks in IMAGE_MARKS if (found := tokenizer.id_of(marks[1])) is not None and token in (None, found)
    ]
    default = {"before": "", "token": "", "after": ""}
    if known:
        before, placeholder, after = known[0]
        default = {"token": placeholder}
        default |= {
            key: mark if tokenizer.id_of(mark) is not None else ""
            for key, mark in (("before", before), ("after", after))
        }
    names = {**default, **given}
    ids = {key: _id(tokenizer, key, name) for key, name in names.items()}
    if token is None or "token" in given:
        if not ids["token"]:
            text = "--image: the tokenizer has none of the known placeholders; name one of its tokens with token=..."
            raise DataError(text, where="--image", allowed="token=TOKEN")
        token = ids["token"][0]
    return token, ids["before"], ids["after"]


def _id(tokenizer: Tokenizer, key: str, name: str) -> tuple[int, ...]:
    if not name:
        return ()
    found = tokenizer.id_of(name)
    if found is None:
        text = f"--image {key}={name}: the tokenizer has no such token; use one of its tokens"
        raise DataError(text, where="--image", value=name, allowed="a token of the tokenizer")
    return (found,)


def _published_images(directory: Path) -> tuple[PatchRule | TileRule, int]:
    """The rule and the placeholder of a published model. Raises DataError."""
    path = directory / CONFIG if directory.is_dir() else directory
    try:
        model = multimodal_config_from_huggingface(json.loads(path.read_text(encoding="utf-8")))
    except HuggingFaceError as error:
        raise DataError(error.faults) from error
    except (OSError, ValueError) as error:
        remedy = "give a directory with the config.json of Intern-S1 or Intern-S1-Pro"
        raise DataError(
            f"--media {path} cannot be read ({error}); {remedy}", where="--media", value=str(path), allowed=remedy
        ) from error
    assert model.vision is not None  # a directory without it is refused
    assert model.image_token is not None
    return _sizes(_rule(model.vision), path.with_name(PREPROCESSOR)), model.image_token


def _rule(vision: VisionConfig | InternViTConfig) -> PatchRule | TileRule:
    if isinstance(vision, VisionConfig):
        return PatchRule(vision.patch_size, vision.merge, vision.frames)
    return TileRule(vision.tile_size, vision.patch_size, vision.merge)


def _sizes(rule: PatchRule | TileRule, path: Path) -> PatchRule | TileRule:
    """The rule with what a preprocessor_config.json says of it. Raises DataError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return rule
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); repair or remove it", where=str(path), allowed="a JSON object"
        ) from error
    size = found.get("size") or {}
    names = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
    if isinstance(rule, TileRule):
        names = {"min_tiles": found.get("min_patches"), "max_tiles": found.get("max_patches")}
    names |= {"mean": found.get("image_mean"), "std": found.get("image_std")}
    given: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in names.items() if v is not None}
    return dataclasses.replace(rule, **given)
