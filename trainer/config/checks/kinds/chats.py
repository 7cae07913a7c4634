"""Chats: keys of `data.name=chat`, and the loss that they need."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from parallel.errors import Fault
from trainer.config.checks.data import COUNT, NAME
from trainer.config.keys import Config, DataConfig

KEYS = ("chats", "chat_template", "chat_values", "chat_date", "long_chats", "pack_chats")
OF_TEMPLATES = ("chat_template", "chat_values", "chat_date")  # questions have them, too: messages are rendered
OWN = ("messages", "tools", "documents", "add_generation_prompt")  # names that a template gets anyway


def check(cfg: Config) -> list[Fault]:
    """Faults of the keys of chats, and of the reduction of the loss."""
    faults = [*_reduction(cfg)]
    if cfg.data.name != "chat":
        return [*faults, *_without_chats(cfg.data), *_template(cfg.data)]
    return [*faults, *_objective(cfg), *_sources(cfg.data), *_keys(cfg), *_template(cfg.data)]


def _reduction(cfg: Config) -> Iterator[Fault]:
    how, objective = cfg.train.loss_reduction, cfg.train.objective
    if how != "token" and objective != "next_token":
        text = f"train.loss_reduction={how} needs train.objective=next_token, and this is {objective}; use token"
        yield Fault(text, "train.loss_reduction", how, ("token",))
    elif how != "token" and cfg.data.name != "chat":
        text = f"train.loss_reduction={how} needs data.name=chat, and this is data.name={cfg.data.name}; use token"
        yield Fault(text, "train.loss_reduction", how, ("token",))


def _objective(cfg: Config) -> Iterator[Fault]:
    if cfg.train.objective != "next_token":
        text = f"train.objective={cfg.train.objective} does not learn from chats; use next_token"
        yield Fault(text, "train.objective", cfg.train.objective, ("next_token",))


def _without_chats(data: DataConfig) -> Iterator[Fault]:
    default = DataConfig()
    for key in KEYS:
        if data.name == "questions" and key in OF_TEMPLATES:
            continue
        if (value := getattr(data, key)) != getattr(default, key):
            text = f"data.{key} needs data.name=chat, and this is data.name={data.name}; leave it out"
            yield Fault(text, f"data.{key}", tuple(value) if isinstance(value, dict) else value, getattr(default, key))


def _sources(data: DataConfig) -> Iterator[Fault]:
    if not data.chats:
        yield Fault("data.chats is empty; data.name=chat needs one or more", "data.chats", {}, "one or more")
    for name, source in data.chats.items():
        at = f"data.chats.{name}"
        if not NAME.fullmatch(name):
            allowed = "letters, digits, '_' and '-'"
            yield Fault(f"{at}: not a valid name; use {allowed}", at, name, allowed)
        if not source.path.strip():
            allowed = "a file, a directory or a pattern"
            yield Fault(f"{at}.path is empty; use {allowed}", f"{at}.path", source.path, allowed)
        if source.repeat < 1:
            text = f"{at}.repeat={source.repeat} must be positive; use {COUNT}"
            yield Fault(text, f"{at}.repeat", source.repeat, COUNT)


def _keys(cfg: Config) -> Iterator[Fault]:
    data = cfg.data
    if data.build == "none" and data.tokenizer is None and cfg.checkpoint.init_from is None:
        allowed = "a tokenizer.json, or a directory with one"
        text = f"data.tokenizer is missing; use {allowed}, or set checkpoint.init_from to weights with one"
        yield Fault(text, "data.tokenizer", None, allowed)
    if data.build == "toy":
        for key in ("tokenizer", "chat_template"):
            if (value := getattr(data, key)) is not None:
                text = f"data.{key}: the toy's chats have their own; use data.{key}=null"
                yield Fault(text, f"data.{key}", value, (None,))
    if data.seq_len < 2:
        text = f"data.seq_len={data.seq_len} has no place for a chat; use 2 or more"
        yield Fault(text, "data.seq_len", data.seq_len, "2 or more")
    if data.workers:
        text = f"data.workers={data.workers}: chats are read from memory maps in the run's own process; use 0"
        yield Fault(text, "data.workers", data.workers, (0,))


def _template(data: DataConfig) -> Iterator[Fault]:
    if data.chat_date is not None:
        try:
            date.fromisoformat(data.chat_date)
        except ValueError:
            allowed = "a day, such as 2026-12-01"
            text = f"data.chat_date={data.chat_date} is not a day; use {allowed}"
            yield Fault(text, "data.chat_date", data.chat_date, allowed)
    for name in data.chat_values:
        if name in OWN:
            text = f"data.chat_values.{name}: the template gets it from the chats; leave it out"
            yield Fault(text, f"data.chat_values.{name}", data.chat_values[name], "another name")
