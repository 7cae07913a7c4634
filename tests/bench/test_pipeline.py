"""Pipelines as fast as their schedules; the machine has to be quiet for it."""

from __future__ import annotations

import pytest

from parallel.pipeline.plan import Plan
from parallel.pipeline.timing import StageTimes
from tests.bench.pipeline import PIPELINES, expected, waits


@pytest.mark.slow
@pytest.mark.parametrize("plan", PIPELINES, ids=lambda plan: f"{plan.schedule}-{plan.stages_per_rank}")
def test_a_step_takes_as_long_as_its_schedule(plan):
    found, bound = waits(plan, rounds=8)
    assert bound <= found <= 1.10 * bound


def test_interleaving_is_faster_as_its_form_says():
    times = StageTimes(1.0, 1.0, 1.0)
    one, two = (expected(plan, 8, times) for plan in (Plan("1f1b", 4, 1), Plan("interleaved_1f1b", 4, 2)))
    assert (one, two) == (33.0, 28.5)
