"""Confidence intervals against scipy."""

import math
import random
import warnings

import numpy as np
import pytest

from trainer.evaluation import intervals
from trainer.evaluation.intervals import bootstrap, of_mean, wilson

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30), (988, 1000)])
def test_wilson(right: int, n: int) -> None:
    theirs = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    found = of_mean([1.0] * right + [0.0] * (n - right), 100, several=False)
    assert (found.low, found.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-9)
    assert found.method == "Wilson"


def test_normal() -> None:
    values = np.random.default_rng(0).normal(3, 2, 50)
    theirs = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    found = of_mean(values.tolist(), 10, several=False)
    assert (found.low, found.high, found.method) == (
        pytest.approx(10 * theirs[0]), pytest.approx(10 * theirs[1]), "normal",
    )  # fmt: skip
    assert of_mean([1.0, 0.0, 1.0], 1, several=True).method == "normal"  # means of several answers to an item
    assert math.isnan(of_mean([0.3], 1, several=False).low)
    assert math.isnan(of_mean([], 1, several=False).high)


def test_bootstrap_is_that_of_scipy_within_its_noise() -> None:
    draw = random.Random(1)
    pairs = [(x := draw.gauss(0, 1), x + draw.gauss(0, 1)) for _ in range(200)]

    def correlation(sample):
        return float(np.corrcoef(np.array(sample).T)[0, 1])

    found = bootstrap([[pair] for pair in pairs], correlation)
    x, y = np.array(pairs).T
    theirs = stats.bootstrap(
        (x, y), lambda x, y: np.corrcoef(x, y)[0, 1], paired=True, vectorized=False, n_resamples=4000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    assert found.method == "bootstrap, 1,000 resamples"
    assert bootstrap([[pair] for pair in pairs], correlation) == found  # the same each time


def test_all_answers_to_an_item_are_drawn_together() -> None:
    """Ten equal answers to each item say no more than one does."""
    ones = [[float(n % 2)] for n in range(40)]
    tens = [one * 10 for one in ones]

    def mean(sample):
        return sum(sample) / len(sample)

    assert bootstrap(ones, mean) == bootstrap(tens, mean)


def test_undefined_metrics_and_slow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def label_share(sample):  # undefined unless both labels were drawn
        return sum(sample) / len(sample) if len(set(sample)) == 2 else math.nan

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap([[0.0], [0.0], [1.0]], label_share)
    assert 0 < found.low <= found.high < 1
    assert int(found.method.split()[1].replace(",", "")) < 1000
    assert math.isnan(bootstrap([[1.0], [1.0]], label_share).low)
    assert math.isnan(bootstrap([[1.0]], label_share).low)
    monkeypatch.setattr(intervals, "SECONDS", -1.0)
    assert bootstrap([[0.0], [1.0]] * 9, sum).method == "bootstrap, 100 resamples"
