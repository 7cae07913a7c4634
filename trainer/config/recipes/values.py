"""The value of one override, as the type of its key asks for."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from typing import Any

from parallel.errors import Fault
from trainer.config import coerce
from trainer.config.keys import Config
from trainer.config.recipes.groups import KEYS
from trainer.config.recipes.references import WRITE_OUT
from trainer.config.say import IN_A_NAME, shorten, show

QUOTED = re.compile(r"""(?P<quote>['"]).*(?P=quote)""", re.DOTALL)
ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")  # what Hydra's grammar escapes outside of quotes
SWEEP = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\s*\(.*\)", re.DOTALL)
QUOTES = "quotes around each text, as in '7'"  # numbers would not keep the digits that were typed
REFERENCE = re.compile(r"\$\{[^${}]*\}")
EXAMPLES = {"rl.dual_clip": 10.0, "rl.veto_high": 20.0}  # of keys without a default, which take no number below 1


class Unreadable(Exception):  # never leaves this package
    """A value that its key does not take."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def read_value(key: str, hint: Any, typed: str) -> Any:
    """Read what was typed for `key`, whose type is `hint`. Raises `Unreadable`.

    A text is as it is typed, without its quotes; null is None where a key may be; a value with `${` stays as it is.
    """
    if "${" in typed:
        if not is_reference(typed):
            text = f"{key}={shorten(typed)}: a ${{ without its }}; {WRITE_OUT}"
            raise Unreadable(Fault(text, key, typed, WRITE_OUT))
        return read_text(typed)
    if SWEEP.fullmatch(typed):
        raise _swept(key, hint, typed)
    if coerce.is_text(hint):
        if coerce.base(hint) is not hint and typed.lower() == "null":
            return None
        if typed[:1] + typed[-1:] in ("[]", "{}"):
            expected = coerce.convert(hint, object())[1]
            if key == "run.name":  # quotes would not help
                expected = IN_A_NAME
            elif expected == "text":
                expected = f"text; if the brackets belong to it, quote them: '{key}=\"{typed}\"'"
            raise Unreadable(coerce.wrong_type(key, typed, expected))
        return read_text(typed)
    return _parsed(key, hint, typed)


def read_text(typed: str) -> str:
    """A text without quotes around it, or without backslashes before special characters."""
    found = QUOTED.fullmatch(typed)
    if not found or len(typed) < 2:
        return ESCAPED.sub(r"\1", typed)
    quote = found["quote"]
    return re.sub(rf"(\\+)({quote}|$)", lambda m: m[1][: len(m[1]) // 2] + m[2], typed[1:-1])


def is_reference(text: str) -> bool:
    """Return True if each `${` in the text has its `}`."""
    while REFERENCE.search(text):
        text = REFERENCE.sub("", text)
    return "${" not in text


def example(key: str) -> str:
    """A value of `key` as it may be typed: its default, if it has one, and null for a section."""
    value: Any = coerce.defaults(Config)
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    hint = coerce.base(coerce.find(key, KEYS))
    if value is None and not coerce.sections(hint):
        value = EXAMPLES.get(key) or {int: 8, float: 0.5, bool: True}.get(hint, "TEXT")
    return re.sub(r"\s", "", show(value))


def _parsed(key: str, hint: Any, typed: str) -> Any:
    """A number, true or false, a list or a mapping, by Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    expected = coerce.convert(hint, object())[1]
    try:
        inner = read_text(typed) if QUOTED.fullmatch(typed) else typed
        override = OverridesParser.create().parse_overrides([f"x={inner}"])[0]
        if override.is_sweep_override():
            raise _swept(key, hint, typed)
        value: Any = override.value()
    except (HydraException, ValueError, RecursionError):  # ValueError: a number of more than 4,300 digits
        raise Unreadable(coerce.wrong_type(key, typed, expected)) from None
    if _holds_texts(hint) and _holds_numbers(value):
        raise Unreadable(coerce.wrong_type(key, typed, QUOTES))
    return value


def _holds_texts(hint: Any) -> bool:
    """Return True for lists of texts, and for mappings to them."""
    inner = typing.get_args(hint)[-1:] if typing.get_origin(hint) in (list, dict) else ()
    return any(coerce.is_text(one) or _holds_texts(one) for one in inner)


def _holds_numbers(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return any(_holds_numbers(item) or isinstance(item, int | float) for item in items)


def _swept(key: str, hint: Any, typed: str) -> Unreadable:
    if typing.get_origin(hint) is list and "(" not in typed:
        remedy = f"write a list as {key}=[{typed.replace(' ', '')}]"
        return Unreadable(Fault(f"{key}={typed}: sweeps are not supported; {remedy}", key, typed, remedy))
    expected = coerce.convert(hint, object())[1]
    return Unreadable(Fault(f"{key}={shorten(typed)}: sweeps are not supported; use {expected}", key, typed, expected))
