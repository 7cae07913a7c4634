"""A metric in two halves: what one answer is worth, and the figure of all answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
One = Callable[[str, Any], dict[str, Any]]
"""(answer, reference) -> JSON values by name. Never raises for a wrong or unreadable answer; raises ValueError for a
reference that the benchmark cannot have."""


@dataclass(frozen=True)
class Figures:
    """Figures of one task. value: the published scorer's, in its own unit. extra: further ones by name."""

    value: float
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """`one` scores an answer; `combine` makes the figures of the rows that it returned, of any number and order.

    Called with answers and references in the same order, it does both.
    """

    one: One
    combine: Callable[[Sequence[Row]], Figures]
    higher: bool = True

    def __call__(self, answers: Sequence[str], references: Sequence[Any]) -> Figures:
        """Raises ValueError unless there is one reference for each answer."""
        if len(answers) != len(references):
            raise ValueError(f"{len(answers)} answers for {len(references)} references")
        return self.combine([self.one(answer, ref) for answer, ref in zip(answers, references, strict=True)])


def mean(rows: Sequence[Row], name: str = "score") -> float:
    """Mean of the rows' values of this name, in fp64; NaN of nothing."""
    return math.fsum(float(row[name]) for row in rows) / len(rows) if rows else math.nan


def of_means(one: One, *extra: str, unit: float = 1.0, higher: bool = True) -> Metric:
    """The mean of `score` times `unit`; extra: further names whose means are given, in the same unit."""

    def combine(rows: Sequence[Row]) -> Figures:
        return Figures(mean(rows) * unit, {name: mean(rows, name) * unit for name in extra})

    return Metric(one, combine, higher)


def of_errors(one: One) -> Metric:
    """The mean of `score`, an absolute error; extra: `rmse`, the root of its mean square."""

    def combine(rows: Sequence[Row]) -> Figures:
        squares = [{"score": float(row["score"]) ** 2} for row in rows]
        return Figures(mean(rows), {"rmse": math.sqrt(mean(squares))})

    return Metric(one, combine, higher=False)
