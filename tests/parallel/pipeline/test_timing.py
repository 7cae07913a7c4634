"""The closed forms of a step's time against torch's own orders of actions."""

from __future__ import annotations

import pytest

from parallel.pipeline.plan import Plan
from parallel.pipeline.timing import StageTimes, bubble_share, step_time
from tests.parallel.pipeline.orders import Action, makespan, orders

TIMES = StageTimes(1.0, 1.3, 0.8)


@pytest.mark.parametrize("micro_batches", [8, 12])
@pytest.mark.parametrize(
    ("schedule", "stages"),
    [("interleaved_1f1b", 1), ("interleaved_1f1b", 2), ("interleaved_zero_bubble", 1), ("interleaved_zero_bubble", 3)],
)
def test_closed_forms_are_the_makespan(schedule, stages, micro_batches):
    plan = Plan(schedule, 4, stages)
    found = makespan(orders(plan, micro_batches), TIMES, plan.stages)
    assert step_time(plan, micro_batches, TIMES) == pytest.approx(found)


def test_1f1b_is_interleaved_1f1b_with_one_stage():
    assert step_time(Plan("1f1b", 4, 1), 8, TIMES) == step_time(Plan("interleaved_1f1b", 4, 1), 8, TIMES)


@pytest.mark.parametrize("schedule", ["zbv", "dualpipev"])
def test_the_vs_wait_no_longer_than_zero_bubble(schedule):
    plan = Plan(schedule, 4, 2)
    assert step_time(plan, 12, TIMES) is None
    zero_bubble = step_time(Plan("interleaved_zero_bubble", 4, 2), 12, TIMES)
    assert 2 * 12 * TIMES.whole < makespan(orders(plan, 12), TIMES, plan.stages) <= zero_bubble + 1e-9


def test_an_order_that_cannot_end():
    backward_first = {0: [Action("B", 0, 0), Action("F", 0, 0)]}
    with pytest.raises(ValueError, match="never come"):
        makespan(backward_first, TIMES, 1)


def test_bubbles_of_the_flagship():
    """32 ranks and 768 micro-batches: 31 of 799; at 32 micro-batches nearly half."""
    assert bubble_share(Plan("1f1b", 32, 1), 768) == pytest.approx(31 / 799)
    assert bubble_share(Plan("1f1b", 32, 1), 32) == pytest.approx(31 / 63)
