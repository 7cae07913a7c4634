"""Stages of schedules, and where layers are cut."""

from __future__ import annotations

import pytest

from parallel.pipeline.cut import cut_stages
from parallel.pipeline.plan import RULES, PipelineError, Plan
from tests.parallel.pipeline.orders import orders


def test_stages_are_looped_over_the_ranks_or_run_down_and_up():
    assert Plan.resolve("1f1b", 3).owners == [0, 1, 2]
    assert Plan.resolve("interleaved_1f1b", 2, 3).owners == [0, 1, 0, 1, 0, 1]
    for name in ("zbv", "dualpipev"):
        plan = Plan.resolve(name, 3)
        assert plan.owners == [0, 1, 2, 2, 1, 0]
        assert plan.of_rank(1) == [1, 4]


@pytest.mark.parametrize(
    ("schedule", "stages", "allowed"), [("1f1b", 2, (1,)), ("zbv", 3, (2,)), ("dualpipev", 1, (2,))]
)
def test_a_number_of_stages_that_a_schedule_does_not_take(schedule, stages, allowed):
    with pytest.raises(PipelineError) as caught:
        Plan.resolve(schedule, 2, stages)
    assert caught.value.where == "parallel.stages_per_rank"
    assert caught.value.allowed == allowed


def test_numbers_of_micro_batches():
    for schedule, few in (("1f1b", 3), ("dualpipev", 7), ("interleaved_1f1b", 9)):
        plan = Plan.resolve(schedule, 4)
        with pytest.raises(PipelineError) as caught:
            plan.require(few, 6)
        assert caught.value.where == "train.global_batch"
        for batch in caught.value.allowed:
            plan.require(batch // 6, 6)
    Plan.resolve("zbv", 4).require(1, 6)
    for schedule in RULES:
        Plan.resolve(schedule, 4).require(8, 1)


def test_the_next_number_of_micro_batches_that_a_schedule_takes():
    assert [Plan("1f1b", 4).at_least(number) for number in (0, 3, 4, 5)] == [4, 4, 4, 5]
    assert [Plan("interleaved_1f1b", 2, 2).at_least(number) for number in (1, 2, 3, 5)] == [1, 2, 3, 6]


def test_94_layers_in_32_stages_beside_the_head():
    """A head as expensive as 2.7 layers is alone with one layer, and no stage has more than three."""
    cuts = cut_stages(94, Plan.resolve("1f1b", 32), layer=1.0, head=2.7)
    assert [cut.stop - cut.start for cut in cuts] == [3] * 31 + [1]
    assert cuts[-1].stop == 94
    assert [cut.start for cut in cuts[1:]] == [cut.stop for cut in cuts[:-1]]
    assert cuts[-1].cost == pytest.approx(3.7 / (96.7 / 32))


def test_cuts_are_the_best_of_all():
    for layers, ranks, head in ((7, 3, 0.0), (9, 4, 2.6), (23, 5, 0.4), (12, 2, 40.0), (6, 6, 1.0)):

        def cost(counts: list[int], head: float = head) -> tuple[float, float]:
            of = [*counts[:-1], counts[-1] + head]
            return max(of), sum(value * value for value in of)

        cuts = cut_stages(layers, Plan.resolve("1f1b", ranks), layer=1.0, head=head)
        found = [cut.stop - cut.start for cut in cuts]
        every = (
            [*[(layers - last) // (ranks - 1) + (n < (layers - last) % (ranks - 1)) for n in range(ranks - 1)], last]
            for last in range(1, layers - ranks + 2)
        )
        assert cost(found) == min(map(cost, every))
    cut_stages(10**8, Plan.resolve("1f1b", 4), layer=1.0, head=1.0)  # at once


def test_every_stage_has_a_layer():
    assert [cut.stop - cut.start for cut in cut_stages(3, Plan.resolve("1f1b", 3), layer=1.0, head=50.0)] == [1, 1, 1]
    with pytest.raises(PipelineError) as caught:
        cut_stages(5, Plan.resolve("zbv", 3), layer=1.0, head=1.0)
    assert (caught.value.where, caught.value.allowed) == ("parallel.pp", (1, 2))


def test_passes_under_way_at_one_time():
    """Against the orders of torch's schedules; 1F1B has none to look at, and is Narayanan et al.'s figure 4."""
    assert [Plan("1f1b", 4).in_flight(rank, 20) for rank in range(4)] == [4, 3, 2, 1]
    assert Plan("1f1b", 4).in_flight(0, 3) == 3
    for schedule, per_rank in (("interleaved_1f1b", 3), ("interleaved_zero_bubble", 2), ("zbv", 2), ("dualpipev", 2)):
        plan = Plan(schedule, 4, per_rank)
        for rank, actions in orders(plan, 4 * plan.stages).items():
            running: set[tuple[int, int]] = set()
            most = 0
            for action in actions:
                if action.kind == "F":
                    running.add((action.stage, action.micro_batch))
                elif action.kind in "BW":
                    running.remove((action.stage, action.micro_batch))
                most = max(most, len(running))
            assert plan.in_flight(rank, 4 * plan.stages) == most
            assert plan.in_flight(rank, plan.steady(1000)) == most


def test_few_micro_batches_stand_for_many():
    assert Plan("1f1b", 32).steady(768) == 34
    assert Plan("1f1b", 32).steady(33) == 33
    for schedule in RULES:
        plan = Plan.resolve(schedule, 4)
        plan.require(plan.steady(1000), 1)
