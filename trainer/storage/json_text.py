"""JSON that other programs wrote: files of users, bodies of requests, replies of servers.

Python's parser takes more than JSON has: NaN, numbers beyond a float, the second of two equal keys, and half a
character (`"\\ud83d"`), which cannot be written again. Each of these would change a value silently, or fail later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NoReturn


def read_json(
    text: str | bytes,
    *,
    unique: bool = False,
    not_numbers: bool = False,
    halves: Literal["refuse", "replace"] = "refuse",
) -> Any:
    """Return the value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    unique: refuse an object that has a key twice. not_numbers: keep NaN and infinities, for a caller that looks at the
    values that it uses (`is_finite`). halves: what to do with half of a character of two halves; replace it: by U+FFFD.
    Raises ValueError for everything else that is not JSON, nesting that is too deep included.
    """
    if not isinstance(text, str):
        text = text.decode("utf-8-sig")
    try:
        found = json.loads(
            text,
            parse_constant=None if not_numbers else _constant,
            parse_float=None if not_numbers else _finite,
            object_pairs_hook=_once if unique else None,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found if text.isascii() and "\\u" not in text else _whole(found, halves)


def is_finite(value: Any) -> bool:
    """Return False if a value of JSON is or holds NaN or an infinity."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a character of two halves."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _whole(value: Any, halves: Literal["refuse", "replace"]) -> Any:
    written = json.dumps(value, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError:
        if halves == "refuse":
            raise ValueError("it has half of a character, which is not UTF-8") from None
        return json.loads(whole_characters(written))
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found
