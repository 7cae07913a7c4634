"""The rules of media from words, `rule=patches max_pixels=1003520`, from a model's configuration, and from a published
model's directory."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parallel.errors import one_of
from trainer.config.model import ModelConfig
from trainer.config.say import did_you_mean
from trainer.data.errors import DataError
from trainer.data.media.images import DECODE_LIMIT, PatchRule, TileRule
from trainer.data.media.processors import rule_of_processor
from trainer.data.media.rules import IMAGE_RULES, ImageKind, MediaRules, SignalKind
from trainer.data.media.signals import SignalRule
from trainer.data.shards.tokenizer import Tokenizer
from trainer.weights.beside.media_rules import MARKERS, known_marks, rule_of_tower, signal_rule_of
from trainer.weights.hf_files import CONFIG, HuggingFaceError
from trainer.weights.towers.config import multimodal_config_from_huggingface

IN_ROWS = ("field", "in_text")
Words = Mapping[str, str]


def read_words(option: str, given: Sequence[str]) -> dict[str, str] | None:
    """The keys and values of an option, which may be given several times; None where it is not given. Raises DataError
    for a word without `=`."""
    found: dict[str, str] = {}
    for word in (word for some in given for word in shlex.split(some)):
        key, equals, value = word.partition("=")
        if not equals:
            text = f"{option} {word!r} is not KEY=VALUE; use for example token=TOKEN"
            raise DataError(text, where=option, value=word, allowed="KEY=VALUE")
        found[key] = value
    return found if given else None


def media_rules(
    tokenizer: Tokenizer,
    *,
    image: Words | None = None,
    signal: Words | None = None,
    model: ModelConfig | None = None,
    published: Path | None = None,
) -> MediaRules | None:
    """The rules of a corpus; None without any.

    image, signal: what `--image` and `--signal` give. model: its towers and placeholders hold where these do not say
    otherwise. published: the same for a directory with the config.json of a model. Raises DataError.
    """
    if published is not None:
        model = _published(published)
    images = signals = None
    if image is not None or (model is not None and model.vision is not None):
        images = _images(image or {}, tokenizer, model, published)
    if signal is not None or (model is not None and model.signals is not None):
        rule = SignalRule() if published is None else signal_rule_of(published)
        signals = _signals(signal or {}, tokenizer, model, rule)
    return MediaRules(images, signals) if images or signals else None


def check_marks(media: MediaRules, tokenizer: Tokenizer) -> None:
    """Refuse placeholders and markers that the tokenizer does not have. Raises DataError."""
    for name, kind in media.kinds.items():
        for token in (kind.token, *kind.before, *kind.after):
            if not 0 <= token < tokenizer.vocab_size:
                allowed = f"tokens below {tokenizer.vocab_size}"
                text = f"the token {token} of {name}s is not one of the tokenizer; use {allowed}, or its own tokenizer"
                raise DataError(text, where=f"--{name}", value=token, allowed=allowed)
        if (given := tokenizer.token(kind.token)) not in tokenizer.added:
            text = f"the placeholder of {name}s, {given!r}, is a token of ordinary text; use token= with a special one"
            raise DataError(text, where=f"--{name}", value=given, allowed=tuple(tokenizer.added))
    if len(media.placeholders) < len(media.kinds):
        (token,) = media.placeholders
        text = f"images and signals have the same placeholder {token}; give each its own with token=TOKEN"
        raise DataError(text, where="--signal", value=token, allowed="another token")


def _images(words: Words, tokenizer: Tokenizer, model: ModelConfig | None, published: Path | None) -> ImageKind:
    rest = dict(words)
    rule: PatchRule | TileRule | None = None
    if model is not None and model.vision is not None:
        rule = rule_of_tower(model.vision)
        if published is not None:
            rule = rule_of_processor(rule, published)
    name = rest.pop("rule", None)
    if name is not None and name not in IMAGE_RULES:
        allowed = tuple(IMAGE_RULES)
        text = f"--image rule={name} is not a rule; use {one_of(allowed)}{did_you_mean(name, allowed)}"
        raise DataError(text, where="--image", value=name, allowed=allowed)
    if rule is None or (name is not None and not isinstance(rule, IMAGE_RULES[name])):
        rule = IMAGE_RULES[name or "patches"]()
    marks = {key: rest.pop(key) for key in MARKERS if key in rest}
    in_rows = {key: rest.pop(key) for key in IN_ROWS if key in rest}
    limit = rest.pop("decode_limit", None)
    rule = _replaced("--image", rule, rest, ("rule", *MARKERS, *IN_ROWS, "decode_limit"))
    token, before, after = _marks("--image", tokenizer, marks, None if model is None else model.image_token)
    decode_limit = DECODE_LIMIT if limit is None else _value("--image", "decode_limit", limit, 1)
    return ImageKind(rule, token, before, after, decode_limit, **in_rows)


def _signals(words: Words, tokenizer: Tokenizer, model: ModelConfig | None, rule: SignalRule) -> SignalKind:
    rest = dict(words)
    marks = {key: rest.pop(key) for key in MARKERS if key in rest}
    in_rows = {key: rest.pop(key) for key in IN_ROWS if key in rest}
    rule = _replaced("--signal", rule, rest, (*MARKERS, *IN_ROWS))
    if rule.long == "cut" and "max_tokens" in rest:
        text = f"--signal max_tokens={rule.max_tokens} has no effect with long=cut, the published rule"
        raise DataError(f"{text}; use long=adapt, or leave it out", where="--signal", value=rule.max_tokens,
                        allowed="long=adapt, or no max_tokens")  # fmt: skip
    token, before, after = _marks("--signal", tokenizer, marks, None if model is None else model.signal_token)
    return SignalKind(rule, token, before, after, **in_rows)


def _replaced(option: str, rule: Any, words: Words, others: Sequence[str]) -> Any:
    """The rule with the values of words. others: keys of the option beside the rule's."""
    known = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    for key in words:
        if key not in known:
            allowed = (*others, *known)
            text = f"{option} {key}: there is no such key; use {one_of(allowed)}{did_you_mean(key, allowed)}"
            raise DataError(text, where=option, value=key, allowed=allowed)
    return dataclasses.replace(rule, **{key: _value(option, key, text, known[key]) for key, text in words.items()})


def _value(option: str, key: str, text: str, like: Any) -> Any:
    """A value of the type of `like`: text, a whole number, true or false, or numbers with commas."""
    if isinstance(like, str):
        return text
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
        lists = isinstance(like, tuple)
        allowed = "true or false" if isinstance(like, bool) else "three numbers" if lists else "a whole number above 0"
        text_of_fault = f"{option} {key}={text}: use {allowed}"
        raise DataError(text_of_fault, where=option, value=text, allowed=allowed) from None


def _marks(
    option: str, tokenizer: Tokenizer, given: Words, token: int | None
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The placeholder, and the markers around it. token: the placeholder of the model."""
    names = known_marks(option.removeprefix("--"), tokenizer, token)
    names |= given
    ids = {key: _id(option, tokenizer, key, names.get(key, "")) for key in MARKERS}
    if token is None or "token" in given:
        if not ids["token"]:
            text = f"{option}: the tokenizer has none of the known placeholders; name one with token=TOKEN"
            raise DataError(text, where=option, allowed="token=TOKEN")
        token = ids["token"][0]
    return token, ids["before"], ids["after"]


def _id(option: str, tokenizer: Tokenizer, key: str, name: str) -> tuple[int, ...]:
    if not name:
        return ()
    found = tokenizer.id_of(name)
    if found is None:
        text = f"{option} {key}={name}: the tokenizer has no such token; use one of its tokens"
        raise DataError(text, where=option, value=name, allowed="a token of the tokenizer")
    return (found,)


def _published(directory: Path) -> ModelConfig:
    path = directory / CONFIG
    try:
        return multimodal_config_from_huggingface(json.loads(path.read_text(encoding="utf-8")))
    except HuggingFaceError as error:
        raise DataError(error.faults) from error
    except (OSError, ValueError) as error:
        remedy = "give a directory with the config.json of Intern-S1 or Intern-S1-Pro"
        text = f"--media {path} cannot be read ({error}); {remedy}"
        raise DataError(text, where="--media", value=str(path), allowed=remedy) from error
