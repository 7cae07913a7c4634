"""Steps in a row on the stages of a pipeline: what is around forward and backward equals one process too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.sharding.local import local_part
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close
from tests.trainer.stages.layouts import (
    GLOBAL_MICRO,
    MODEL,
    SEQ_LEN,
    Case,
    Layout,
    Step,
    build_parts,
    errors,
    forward_backward,
    one_step,
    step_batches,
)
from trainer.data.synthetic import open_synthetic
from trainer.run.evaluate import evaluate
from trainer.run.sample import generate
from trainer.run.step import count_step

SHARDED = Layout(pp=2, dp_shard=2)  # each of a stage's weights, experts' too, is on two ranks
COPIED = Layout(pp=2, dp_replicate=2)
SCHEDULES = [("1f1b", 1), ("zbv", 2)]


def steps_and_evaluations(case: Case) -> tuple[list[Step | None], list[Any], list[list[int]]]:
    """Two steps, with an evaluation and texts before, between and after them."""
    parts, world = build_parts(case)
    heldout = open_synthetic(vocab_size=MODEL["vocab_size"], seq_len=SEQ_LEN, seed=1).heldout
    steps, evaluations, texts = [], [], []
    for number in range(3):
        micro = GLOBAL_MICRO // case.layout.readers
        evaluations.append(
            evaluate(parts.forward, parts.objective, heldout, world, parts.place, batches=2, micro_batch=micro)
        )
        prompts = [[3, 4, 5], [6], [7, 8]]
        stages = [*parts.stages.values()]
        texts += generate(parts.forward, stages, prompts, tokens=4, eos_id=0, seed=number, world=world)
        if number < 2:
            steps.append(one_step(parts, world, step_batches(case, parts.place, number)))
    return steps, evaluations, texts


@pytest.mark.parametrize(
    "schedule", [pytest.param(SCHEDULES[0], marks=pytest.mark.slow), SCHEDULES[1]], ids=lambda schedule: schedule[0]
)
def test_evaluations_and_texts_between_steps_equal_one_process_and_change_no_gradient(schedule):
    case = Case(SHARDED, schedule, objective="next_token")
    expected_steps, expected_evaluations, expected_texts = steps_and_evaluations(case.alone())
    by_rank = on_ranks(case.layout.ranks, steps_and_evaluations, case, init=True, timeout_s=120.0)
    for found, expected in zip(by_rank[0][0], expected_steps, strict=True):
        assert max(errors(found, expected)[:4]) < 1e-10
    for _, evaluations, texts in by_rank:  # the same on all ranks
        for of_run, of_one in zip(evaluations, expected_evaluations, strict=True):
            assert of_run["heldout"] == pytest.approx(of_one["heldout"], rel=1e-12)
        assert texts == expected_texts


def spoiled_step(case: Case, bad_rank: int) -> tuple[dict[str, float | None], list[str]]:
    """A step whose gradient is NaN in one number on one rank. Returns its scalars, and the weights that moved."""
    parts, world = build_parts(case)
    before = {name: local_part(p).detach().clone() for name, p in parts.engine.named.items()}
    batches = step_batches(case, parts.place)
    units = count_step(parts.objective, batches, world, parts.place)["units"]
    forward_backward(parts, world, batches, units)
    if world.rank == bad_rank:
        gradient = next(p.grad for stage in parts.stages.values() for p in stage.parameters() if p.grad is not None)
        local_part(gradient).view(-1)[0] = torch.nan
    update = parts.engine.step(1, 10)
    moved = [name for name, p in parts.engine.named.items() if not torch.equal(before[name], local_part(p))]
    return {name: value.item() for name, value in update.items()}, moved


@pytest.mark.parametrize("layout", [SHARDED, COPIED], ids=str)
def test_a_number_that_is_not_finite_on_one_rank_of_one_stage_skips_the_step_on_all(layout):
    for bad_rank in (0, 3):
        for update, moved in on_ranks(4, spoiled_step, Case(layout), bad_rank, init=True):
            assert update["skipped"] == 1
            assert moved == []
    assert all(
        moved and not update["skipped"] for update, moved in on_ranks(4, spoiled_step, Case(layout), -1, init=True)
    )


def gradients_after(case: Case, rounds: int) -> tuple[dict[str, Tensor], int, int]:
    """This rank's gradients of the same micro-batches run `rounds` times without an update; how often a stage ran in
    these, and how often it had to."""
    parts, world = build_parts(case)
    batches = step_batches(case, parts.place)
    units = count_step(parts.objective, batches, world, parts.place)["units"]
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    for stage in parts.stages.values():
        stage.register_forward_pre_hook(count)
    for _ in range(rounds):
        forward_backward(parts, world, batches, units)
    grads = {name: local_part(p.grad).clone() for s in parts.stages.values() for name, p in s.named_parameters()}
    return grads, runs, rounds * len(parts.stages) * case.micro_batches


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule[0])
def test_gradients_are_added_and_each_stage_runs_a_micro_batch_once(schedule):
    """torch's schedules divide what was accumulated before by the number of micro-batches, and run every stage once
    more on memory that was never written, unless they are set not to."""
    once = on_ranks(4, gradients_after, Case(SHARDED, schedule), 1, init=True)
    twice = on_ranks(4, gradients_after, Case(SHARDED, schedule), 2, init=True)
    for (one, *counted), (two, *counted_twice) in zip(once, twice, strict=True):
        assert counted[0] == counted[1]
        assert counted_twice[0] == counted_twice[1]
        assert_close(two, {name: 2 * gradient for name, gradient in one.items()}, 1e-12)


def test_a_head_that_the_objective_leaves_out_is_frozen_and_has_no_state():
    parts_of_ranks = on_ranks(2, head_of_last_stage, init=True)
    assert parts_of_ranks == [[], ["frozen", "no gradient", "not moved"]]


def head_of_last_stage() -> list[str]:
    case = Case(Layout(pp=2), objective="contrastive")
    parts, world = build_parts(case)
    heads = [stage.lm_head for stage in parts.stages.values() if stage.lm_head is not None]
    before = [head.detach().clone() for head in heads]
    one_step(parts, world, step_batches(case, parts.place))
    found = []
    for head, old in zip(heads, before, strict=True):
        found += [] if head.requires_grad else ["frozen"]
        found += ["no gradient"] if head.grad is None else []
        found += ["not moved"] if torch.equal(head, old) else []
    return found
