"""Few combinations of options in which each value, or each pair of two options' values, occurs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Choice = dict[str, Any]


def allowed_choices(options: Mapping[str, Sequence[Any]], allowed: Callable[[Choice], bool]) -> list[Choice]:
    """The whole product of `options`, without what is not `allowed`."""
    choices = (dict(zip(options, values, strict=True)) for values in product(*options.values()))
    return [choice for choice in choices if allowed(choice)]


def values_of(choice: Choice) -> set[Any]:
    return set(choice.items())


def pairs_of(choice: Choice) -> set[Any]:
    return set(combinations(choice.items(), 2))


def cover(choices: Sequence[Choice], parts_of: Callable[[Choice], set[Any]]) -> list[Choice]:
    """Some of `choices` that together have all their parts: greedily the one with most new parts, the first of
    equals."""
    bits: dict[Any, int] = {}
    masks = []
    for choice in choices:
        parts = sorted(parts_of(choice), key=repr)  # a set's own order differs from run to run
        masks.append(sum(1 << bits.setdefault(part, len(bits)) for part in parts))
    missing, found = (1 << len(bits)) - 1, []
    while missing:
        best = max(range(len(choices)), key=lambda n: (masks[n] & missing).bit_count())
        found.append(choices[best])
        missing &= ~masks[best]
    return found
