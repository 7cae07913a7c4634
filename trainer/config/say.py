"""Wording that error messages share: suggestions, and values as they are typed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.config.recipes.synonyms import meant_by

FEW = 4  # differences that one line names
IN_A_NAME = "letters, digits, '_', '-' and '.'"  # of a run, which becomes part of a directory's name


def show(value: Any) -> str:
    """A value as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    try:
        return shorten(str(value))
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"


def counted(number: int, noun: str) -> str:
    """`1 document`, `2,000 documents`. noun: in the singular, with a plural in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def few(items: Sequence[str], see: str) -> str:
    """The first `FEW` of the items, joined by semicolons, and the number of the others. see: where all of them are."""
    hidden = len(items) - FEW
    return "; ".join([*items[:FEW], *([f"and {hidden} more ({see} lists all)"] if hidden > 0 else [])])


def shorten(text: str, most: int = 200) -> str:
    """The text, without its middle if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word closest to `word`, if one is close, in any case. The last dotted part alone also counts: lr
    matches optim.lr; so does a name of the same thing in another program. cutoff: the least similarity (0 to 1) of
    words without dots."""
    known = set(known)
    if word not in known and (meant := meant_by(word)) in known:
        return meant
    as_known = {name.lower(): name for name in sorted(known, reverse=True)}
    near = _nearest(word.lower(), sorted(as_known), cutoff)
    return as_known[near] if near is not None else None


def _nearest(word: str, names: Sequence[str], cutoff: float) -> str | None:
    if word in names:
        return word
    longer = [name for name in names if name.startswith(f"{word}_")]
    if longer:
        return longer[0]
    section, _, last = word.rpartition(".")
    tails = {name.rpartition(".")[2]: name for name in reversed(names)}
    if not section and word in tails:
        return tails[word]
    # Two keys of one section resemble each other by the section alone, so their last parts are compared as well.
    for near in difflib.get_close_matches(word, names, n=3, cutoff=0.8 if section else cutoff):
        near_section, _, near_last = near.rpartition(".")
        if section != near_section or difflib.get_close_matches(last, [near_last]):
            return near
    alike = difflib.get_close_matches(last, tails, n=1, cutoff=0.75)
    return tails[alike[0]] if alike else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'adamw'?"`, or nothing if no known word is close."""
    near = nearest(word, known)
    return f"; did you mean '{near}'?" if near else ""


def closest(values: Sequence[int], wanted: int, count: int = 6) -> tuple[int, ...]:
    """The `count` values closest to `wanted`, in ascending order."""
    return tuple(sorted(sorted(values, key=lambda value: (abs(value - wanted), value))[:count]))
