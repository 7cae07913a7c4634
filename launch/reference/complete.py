"""The words that may follow on an unfinished command line of `octavo`. Quick: a shell waits for it at every Tab."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from parallel.errors import UserError
from trainer.config import coerce
from trainer.config.command_line import Parser
from trainer.config.recipes.groups import KEYS, SECTIONS, directories_in, is_extra, list_groups

CHOICES = re.compile(r"\{(.+)\}")  # the metavar of an option with a fixed set of values


class _Made(Exception):
    """Carries a command's parser out of its `prepare`."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


class _NoMoreThanMade(Parser):
    def read(self, words: Sequence[str]) -> NoReturn:
        raise _Made(self)


def complete(line: str, commands: Mapping[str, str]) -> list[str]:
    """Whole words that may stand where `line` ends, its last word unfinished; none where a file may stand, or anything.

    A word that ends in `=` or `.` is itself unfinished. commands: command -> its module.
    """
    words = line.split()
    current = "" if not words or line[-1:].isspace() else words.pop()
    typed = words[1:]  # without `octavo`
    if not typed:
        return _starting_with(current, [*commands, "--help", "--version"])
    if typed[0] not in commands:
        return []
    parser = _parser_of(typed[0], commands[typed[0]], typed[1:])
    return [] if parser is None else _starting_with(current, _words(parser, typed[1:], current))


def _starting_with(current: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(current)})


def _parser_of(name: str, module: str, typed: Sequence[str]) -> Parser | None:
    try:
        importlib.import_module(module).prepare(_NoMoreThanMade(f"octavo {name}", ""), typed)
    except _Made as made:
        return made.parser
    except UserError:  # such as a --config-dir that does not exist
        return None
    return None


def _words(parser: Parser, typed: Sequence[str], current: str) -> Iterable[str]:
    options = {name: action for action in parser.added for name in action.option_strings if name.startswith("--")}
    before = options.get(typed[-1]) if typed else None
    if before is not None and before.nargs != 0:
        return _values(before)
    option, equals, _ = current.partition("=")
    if equals and option in options:
        return [f"{option}={value}" for value in _values(options[option])]
    if current.startswith("-"):
        given = {word.partition("=")[0] for word in typed}
        return [name for name in options if name not in given or name in parser.repeatable]
    taken = _arguments(options, typed)
    places = [action for action in parser.added if not action.option_strings]
    for place in places:
        if place.nargs == "*":
            break
        if not taken:
            return _values(place)
        taken -= 1
    else:
        return []
    if place.dest != "overrides":
        return _values(place)
    groups = list_groups(directories_in(typed))
    first_of_data = places[0].dest == "action" and not taken  # where a recipe's bare name will do
    return [*(groups["recipe"] if first_of_data else []), *_overrides(groups, typed, current)]


def _arguments(options: Mapping[str, argparse.Action], typed: Sequence[str]) -> int:
    """The number of words that are neither options nor their values."""
    behind = ["", *typed]
    return sum(
        not word.startswith("-") and not (before in options and options[before].nargs != 0)
        for before, word in zip(behind, typed, strict=False)
    )


def _values(action: argparse.Action) -> list[str]:
    if action.dest == "keys":
        return [*KEYS, *(f"{name}." for name in SECTIONS)]
    if action.dest == "diff":
        return list_groups()["recipe"]
    if action.dest == "groups":
        return [*list_groups()]
    braces = CHOICES.fullmatch(str(action.metavar))
    return braces[1].split(",") if braces else []


def _overrides(groups: Mapping[str, list[str]], typed: Sequence[str], current: str) -> list[str]:
    given = {word.partition("=")[0] for word in typed}
    name, equals, _ = current.partition("=")
    if equals:
        values = groups.get(name.lstrip("+")) or _choices(KEYS.get(name))
        return [f"{name}={value}" for value in values]
    if "." in current:
        return [f"{key}=" for key in KEYS if key not in given]
    names = {group: f"{'+' if is_extra(group, groups) else ''}{group}=" for group in groups}
    return [*(name for group, name in names.items() if group not in given), *(f"{name}." for name in SECTIONS)]


def _choices(hint: Any) -> list[str]:
    kind = coerce.base(hint)
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return ["true", "false"] if kind is bool else []
