"""Scalars by name: how they combine over micro-batches and ranks, and that reading them waits once."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from trainer.config.keys import TrainConfig
from trainer.objectives.choose import OBJECTIVES, build_objective
from trainer.objectives.scalars import Scalar, Scalars, Totals, read_totals


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def step(rank: int) -> Totals:
    """Two micro-batches on a rank."""
    totals = Totals()
    for micro in (1.0, 2.0):
        totals.add(
            Scalars(
                nats=Scalar(tensor(micro + 10 * rank), normaliser=4, loss=True),
                largest=Scalar(tensor(micro * (1 + rank)), micro_batches="max", ranks="max"),
                alike=Scalar(tensor(7.0), micro_batches="max", ranks="same"),
            )
        )
    return totals


def test_scalars_combine_as_each_says():
    assert read_totals([step(0)], World()) == [{"nats": 0.75, "largest": 2.0, "alike": 7.0}]
    assert read_totals([], World()) == []


def test_many_micro_batches_add_up_without_rounding():
    """In fp32 the sum of equal numbers drifts by 1e-5 over these."""
    totals, value = Totals(), tensor(0.1)
    for _ in range(3_000):
        totals.add(Scalars(loss=Scalar(value, normaliser=3_000, loss=True)))
    assert read_totals([totals], World())[0]["loss"] == pytest.approx(float(tensor(0.1)), rel=1e-7)


def rank_reads() -> list[dict[str, float]]:
    world = start_world("cpu", 60.0)
    try:
        return read_totals([step(world.rank), step(world.rank + 1)], world)
    finally:
        world.close()


def test_ranks_combine_as_each_says():
    expected = [
        {"nats": 5.75 + 0.75, "largest": 4.0, "alike": 7.0},
        {"nats": 5.75 + 10.75, "largest": 6.0, "alike": 7.0},
    ]
    assert on_ranks(2, rank_reads) == [expected, expected]


def later(rank: int) -> Totals:
    """A step that lacks two of the scalars of `step` and has one of its own, whose largest value is below 0."""
    totals = Totals()
    totals.add(Scalars(lowest=Scalar(tensor(-5.0 - rank), ranks="max"), alike=Scalar(tensor(9.0), ranks="same")))
    return totals


def rank_reads_unlike_steps() -> list[list[dict[str, float]]]:
    world = start_world("cpu", 60.0)
    try:
        return [read_totals(steps, world) for steps in ([step(0), later(world.rank)], [later(world.rank), step(0)])]
    finally:
        world.close()


def test_a_scalar_that_some_steps_lack_is_read_from_those_that_have_it():
    here, there = {"nats": 0.75, "largest": 2.0, "alike": 7.0}, {"lowest": -5.0, "alike": 9.0}
    assert read_totals([step(0), later(0)], World()) == [here, there]
    assert read_totals([later(0), step(0)], World()) == [there, here]
    here["nats"] = 1.5
    assert on_ranks(2, rank_reads_unlike_steps) == [[[here, there], [there, here]]] * 2


def test_a_scalar_that_combines_in_two_ways_is_refused():
    other = Totals()
    other.add(Scalars(nats=Scalar(tensor(1.0), ranks="max")))
    with pytest.raises(ValueError, match="nats combines over the ranks by sum in one step and by max in another"):
        read_totals([step(0), other], World())


def test_the_total_is_of_losses_alone_and_carries_their_gradients():
    weight = torch.ones((), requires_grad=True)
    scalars = Scalars(
        a=Scalar(3 * weight, 2, loss=True), b=Scalar(weight * 5, loss=True), c=Scalar(weight.detach() * 100)
    )
    assert scalars.total.item() == 6.5
    scalars.total.backward()
    assert weight.grad == 6.5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_can_be_chosen_and_no_other(name):
    assert set(get_args(get_type_hints(TrainConfig)["objective"])) == set(OBJECTIVES)
    assert callable(build_objective(TrainConfig(objective=name)))
