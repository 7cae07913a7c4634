"""The keys of a configuration with their types, defaults and meanings, which are the comments of the schema."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import re
import tokenize
import types
import typing
from typing import Any, Literal

from parallel.errors import one_of
from trainer.config import coerce
from trainer.config.errors import CommandError
from trainer.config.keys import Config
from trainer.config.say import nearest, show

NAMES = {int: "whole number", float: "number", bool: "true|false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One line of the list. default: as it is typed, or "required"."""

    name: str
    kind: str
    default: str
    meaning: str


def list_keys(prefix: str = "") -> list[Key]:
    """All keys that start with `prefix`. Raises `CommandError` where none does."""
    found = [*_keys(Config, "")]
    chosen = [key for key in found if key.name.startswith(prefix)]
    if not chosen:
        names = [key.name for key in found]
        sections = tuple(coerce.fields(Config))
        near = nearest(prefix, [*names, *sections])
        advice = f"did you mean '{near}'?" if near else f"use {one_of(sections)}"
        allowed = (near,) if near else sections
        raise CommandError(
            f"--keys {prefix}: no key starts with '{prefix}'; {advice}", where="--keys", value=prefix, allowed=allowed
        )
    return chosen


def table(keys: list[Key]) -> str:
    """One line for each key."""
    widths = [max(len(getattr(key, column)) for key in keys) for column in ("name", "default")]
    wide, narrow = widths[0], min(widths[1], 14)
    return "".join(f"{key.name:{wide}}  {key.default:{narrow}}  {key.kind}  {key.meaning}\n" for key in keys)


def _keys(schema: type, prefix: str) -> typing.Iterator[Key]:
    comments = _comments(schema)
    for name, (hint, field) in coerce.fields(schema).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), f"{key}.")
        elif entry := coerce.entries_of(hint):
            yield Key(key, "mapping", _default(field), comments[name])
            yield from _keys(entry, f"{key}.NAME.")
        elif choices := coerce.optional_sections(hint):
            yield Key(key, "section or null", _default(field), comments[name])
            inside = [found for schema in choices for found in _keys(schema, f"{key}.")]
            by_name = {found.name: found for found in [*inside, *reversed(inside)]}  # of two, the first
            for found in by_name.values():
                inner = found.name.removeprefix(f"{key}.")
                yield dataclasses.replace(found, kind=_kind(coerce.find(f"{name}.{inner}", {name: hint})))
        else:
            yield Key(key, _kind(hint), _default(field), comments[name])


def _kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(arguments)
    if origin in (typing.Union, types.UnionType):
        return f"{_kind(coerce.base(hint))} or null"
    if origin is list:
        return f"list of {_kind(arguments[0])}s"
    if origin is dict:
        return f"mapping to {_kind(arguments[1])}"
    return NAMES[hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return re.sub(r"\s", "", show(field.default_factory()))
    return "required" if field.default is dataclasses.MISSING else show(field.default) or "''"


@functools.cache
def _comments(schema: type) -> dict[str, str]:
    """Field -> its comment: behind it, or in the lines above."""
    source = inspect.getsource(schema)
    comments = {token.start[0]: token for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT}  # fmt: skip
    own_line = {line for line, token in comments.items() if not token.line[: token.start[1]].strip()}
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno is not None:
            lines = [node.end_lineno] if node.end_lineno in comments else []
            if not lines:
                first = node.lineno
                while first - 1 in own_line:
                    first -= 1
                lines = list(range(first, node.lineno))
            text = " ".join(comments[line].string.lstrip("# ") for line in lines)
            found[node.target.id] = text.replace("None:", "null:")
    return found
