"""Confidence intervals of 95 %.

| method | for | formula |
|---|---|---|
| Wilson | the share of right answers | E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209 |
| normal | the mean of other scores, and of items that were answered several times | mean ± 1.96 s / sqrt(n) |
| bootstrap | any other metric | percentiles 2.5 and 97.5 of the metric over resampled items (Efron 1979) |

Items are drawn, not answers: the answers to one item depend on each other.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 1000
LEAST_RESAMPLES = 100
SECONDS = 20.0  # for the resamples of one suite, unless fewer than LEAST_RESAMPLES are done by then
SEED = 0

T = TypeVar("T")


@dataclass(frozen=True)
class Interval:
    """low and high in the metric's unit; NaN where there are too few items. method: for people, such as "Wilson"."""

    low: float
    high: float
    method: str


def wilson(right: int, n: int) -> tuple[float, float]:
    """The interval of a probability from `right` successes in `n` trials."""
    if n == 0:
        return math.nan, math.nan
    p, z2 = right / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def of_mean(values: Sequence[float], unit: float, *, several: bool) -> Interval:
    """The interval of the mean of one value for each item, times `unit`. several: a value is the mean of several."""
    n = len(values)
    if not several and all(value in (0.0, 1.0) for value in values):
        low, high = wilson(int(sum(values)), n)
        return Interval(low * unit, high * unit, "Wilson")
    if n < 2:
        return Interval(math.nan, math.nan, "normal")
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = Z * deviation / math.sqrt(n)
    return Interval((mean - half) * unit, (mean + half) * unit, "normal")


def bootstrap(
    items: Sequence[Sequence[T]], metric: Callable[[Sequence[T]], float], *, resamples: int = RESAMPLES
) -> Interval:
    """The interval of `metric` of the answers. items: the answers to each item. Fewer resamples are drawn where the
    metric is slow, which the method's name says; those whose metric is undefined are left out."""
    if len(items) < 2:
        return Interval(math.nan, math.nan, "bootstrap")
    draw, undefined = random.Random(SEED), 0
    found: list[float] = []
    until = time.monotonic() + SECONDS
    while len(found) + undefined < resamples:
        if len(found) + undefined >= LEAST_RESAMPLES and time.monotonic() > until:
            break
        sample = draw.choices(items, k=len(items))
        value = metric([answer for answers in sample for answer in answers])
        if math.isnan(value):
            undefined += 1
        else:
            found.append(value)
    method = f"bootstrap, {len(found):,} resamples"
    if len(found) < LEAST_RESAMPLES // 2:
        return Interval(math.nan, math.nan, method)
    found.sort()
    return Interval(_quantile(found, 0.025), _quantile(found, 0.975), method)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest, as numpy's default."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
