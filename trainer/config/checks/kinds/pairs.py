"""Images with captions: keys of `data.name=pairs`, and the model and objective that they need."""

from __future__ import annotations

import math
from collections.abc import Iterator

from parallel.errors import Fault
from trainer.config.checks.data import COUNT, NAME
from trainer.config.keys import Config, DataConfig


def check(cfg: Config) -> list[Fault]:
    """Faults of the keys of pairs, and of what fits only them."""
    faults = [*_together(cfg)]
    if cfg.data.name != "pairs":
        return [*faults, *_without_pairs(cfg.data)]
    return [*faults, *_sources(cfg.data), *_keys(cfg.data)]


def _together(cfg: Config) -> Iterator[Fault]:
    """Pairs, their objective, and a model with two towers: all of them or none."""
    pairs, objective = cfg.data.name == "pairs", cfg.train.objective
    if pairs and objective != "image_text":
        text = f"train.objective={objective} does not learn from pairs; use image_text, or another data option"
        yield Fault(text, "train.objective", objective, ("image_text",))
    if objective != "image_text":
        if cfg.model.embedding is not None:
            text = f"model.embedding needs train.objective=image_text, and this is {objective}; use null"
            yield Fault(text, "model.embedding", cfg.model.embedding.width, (None,))
        return
    if not pairs:
        text = f"train.objective=image_text learns from images with captions, and this is data.name={cfg.data.name}"
        yield Fault(f"{text}; use data.name=pairs", "data.name", cfg.data.name, ("pairs",))
    if cfg.model.vision is None or cfg.model.vision.kind != "native":
        text = "train.objective=image_text needs a vision tower for images of any size"
        allowed = "a tower of kind native"
        yield Fault(f"{text}; use a model option with {allowed}", "model.vision", None, allowed)
    if cfg.model.embedding is None:
        allowed = "an embedding, such as {width: 768}"
        text = (
            f"train.objective=image_text needs the common space of model.embedding; use a model option with {allowed}"
        )
        yield Fault(text, "model.embedding", None, allowed)
    if cfg.model.signals is not None:
        text = "model.signals has no use for train.objective=image_text; use null"
        yield Fault(text, "model.signals", None, (None,))
    for key, value in (("parallel.pp", cfg.parallel.pp), ("parallel.cp", cfg.parallel.cp)):
        if value > 1:
            text = f"{key}={value}: train.objective=image_text keeps a caption and both towers on one rank; use {key}=1"
            yield Fault(text, key, value, (1,))


def _without_pairs(data: DataConfig) -> Iterator[Fault]:
    for key in ("pairs", "zero_shot"):
        if value := getattr(data, key):
            text = f"data.{key} needs data.name=pairs, and this is data.name={data.name}; leave it out"
            yield Fault(text, f"data.{key}", tuple(value), ())


def _sources(data: DataConfig) -> Iterator[Fault]:
    if not data.pairs:
        yield Fault("data.pairs is empty; data.name=pairs needs one or more", "data.pairs", {}, "one or more")
    for name, source in data.pairs.items():
        at = f"data.pairs.{name}"
        if source.pairs <= 0:
            yield Fault(f"{at}.pairs={source.pairs} must be positive; use {COUNT}", f"{at}.pairs", source.pairs, COUNT)
        if not math.isfinite(source.max_epochs) or source.max_epochs <= 0:
            text, allowed = f"{at}.max_epochs={source.max_epochs} must be above 0", "a number above 0"
            yield Fault(f"{text}; use {allowed}", f"{at}.max_epochs", source.max_epochs, allowed)
    paths = {
        **{f"data.pairs.{name}.path": source.path for name, source in data.pairs.items()},
        **{f"data.zero_shot.{name}": path for name, path in data.zero_shot.items()},
    }
    for key, path in paths.items():
        if not path.strip():
            yield Fault(f"{key} is empty; use a directory of tar files", key, path, "a directory of tar files")
        name = key.split(".")[2]
        if not NAME.fullmatch(name):
            allowed = "letters, digits, '_' and '-'"
            yield Fault(f"{key}: not a valid name; use {allowed}", key, name, allowed)
    if twice := sorted(data.pairs.keys() & data.zero_shot.keys()):
        text = f"data.zero_shot.{twice[0]} has the name of a source of pairs; use another"
        yield Fault(text, f"data.zero_shot.{twice[0]}", twice[0], "another name")


def _keys(data: DataConfig) -> Iterator[Fault]:
    if data.build == "none" and not (data.tokenizer or "").strip():
        allowed = "a tokenizer.json, or a directory with one"
        yield Fault(f"data.tokenizer is missing; use {allowed}", "data.tokenizer", data.tokenizer, allowed)
    if data.build == "toy" and data.tokenizer is not None:
        text = "data.tokenizer: the toy's pairs have their own; use data.tokenizer=null"
        yield Fault(text, "data.tokenizer", data.tokenizer, (None,))
    if data.seq_len < 2:
        text = f"data.seq_len={data.seq_len} has no place for a caption and its end; use 2 or more"
        yield Fault(text, "data.seq_len", data.seq_len, "2 or more")
    if data.min_pixels > data.max_pixels:
        allowed = f"{data.min_pixels} or more"
        text = f"data.max_pixels={data.max_pixels} is below data.min_pixels={data.min_pixels}; use {allowed}"
        yield Fault(text, "data.max_pixels", data.max_pixels, allowed)
