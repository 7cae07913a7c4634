"""The constraints that an answer follows, as it is and loosely."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.scorers.instructions import forms, requests, words
from trainer.evaluation.scorers.instructions.text import Check

CHECKS: dict[str, Check] = {**words.CHECKS, **forms.CHECKS, **requests.CHECKS}
_BROKEN = (IndexError, KeyError, ValueError, ZeroDivisionError, StopIteration, csv.Error)


class ArgumentError(Exception):
    """A constraint without an argument that it needs: a fault of the benchmark's row, not of the answer."""


class _Given(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise ArgumentError(f"the constraint has no argument {key}")


def follows(answer: str, name: str, given: Mapping[str, Any]) -> bool:
    """True if a non-empty answer follows a constraint. An answer that breaks the check, such as one with too few
    sentences, does not. KeyError: an unknown name; LookupError: nltk's data are missing."""
    return _checked(answer, CHECKS[name], given) or False


def _checked(answer: str, check: Check, given: Mapping[str, Any]) -> bool | None:
    """None where the answer breaks the check."""
    if not answer.strip():
        return False
    try:
        return check(answer, given)
    except _BROKEN:
        return None


def loosely(answer: str, name: str, given: Mapping[str, Any]) -> bool:
    """True if the answer follows it with or without its first and last lines and its asterisks.

    The forms are tried in the published order, up to one that breaks the check.
    """
    lines = answer.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    for text in (answer, answer.replace("*", ""), *shorter, *(one.replace("*", "") for one in shorter)):
        found = _checked(text, CHECKS[name], given)
        if found is not False:
            return found or False
    return False


def score(answer: str, names: Sequence[str], given: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    """`strict` and `loose`: for each constraint whether it is followed. given: their arguments, where None counts
    as not given. Raises ArgumentError for one that is needed."""
    pairs = [
        (name, _Given((key, value) for key, value in arguments.items() if value is not None))
        for name, arguments in zip(names, given, strict=True)
    ]
    return {
        "strict": [follows(answer, name, arguments) for name, arguments in pairs],
        "loose": [loosely(answer, name, arguments) for name, arguments in pairs],
    }
