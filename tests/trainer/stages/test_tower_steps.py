"""Steps in a row of models with towers: AdamW, Muon, frozen parts, and evaluations between them equal one process, in
fp64. Some steps have no images, some no signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.stages.layouts import Case, Layout, Step, build_parts, errors, one_step, step_batches
from tests.trainer.stages.media import IMAGE
from trainer.data.media.synthetic import with_media
from trainer.data.synthetic import open_synthetic
from trainer.run.evaluate import evaluate

STEPS = 3
BOUND = 1e-9
FROZEN = (("vision", "freeze", True), ("merger", "lr", 0.04), ("signals", "weight_decay", 0.5))
TEXT = (("text", "freeze", True), ("router", "freeze", True), ("merger", "freeze", True))
# A step has one micro-batch: the second has no signals, the third no images.
FEW = Case(towers=True, layers=2, micro_batches=1, optim="adamw")
CASES = {
    "quick": [
        FEW._replace(layout=Layout(pp=2), micro_batches=2, parts=FROZEN, recompute="full"),
    ],
    "2 ranks": [
        FEW._replace(layout=Layout(dp_shard=2, ep=2)),
        FEW._replace(layout=Layout(dp_shard=2), parts=FROZEN),
        FEW._replace(layout=Layout(cp=2, cp_kind="ring"), seq_len=12, parts=TEXT),
    ],
    "4 ranks": [
        FEW._replace(layout=Layout(pp=2, dp_shard=2, ep=2), micro_batches=2, parts=FROZEN),
        FEW._replace(layout=Layout(dp_replicate=2, dp_shard=2), parts=TEXT),
        FEW._replace(layout=Layout(pp=2, cp=2), micro_batches=2, seq_len=12, tiles=True, parts=FROZEN[:2]),
        FEW._replace(layout=Layout(dp_shard=4), tiles=True, recompute="selective"),
        FEW._replace(layout=Layout(dp_shard=2, cp=2), seq_len=12, optim="muon"),
        FEW._replace(layout=Layout(pp=2, dp_replicate=2), micro_batches=2, optim="muon", parts=FROZEN),
    ],
}


def steps_in_a_row(cases: Sequence[Case]) -> list[list[Step | None]]:
    found = []
    for case in cases:
        parts, world = build_parts(case)
        found.append([one_step(parts, world, step_batches(case, parts.place, number)) for number in range(STEPS)])
    return found


def of_each(cases: dict[str, list[Case]]) -> list[Any]:
    return [pytest.param(of, id=name, marks=[] if name == "quick" else pytest.mark.slow) for name, of in cases.items()]


@pytest.mark.parametrize("cases", of_each(CASES))
def test_three_updates_are_those_of_one_process(cases):
    ranks = cases[0].layout.ranks
    for case, steps in zip(cases, on_ranks(ranks, steps_in_a_row, cases, init=True, timeout_s=240.0)[0], strict=True):
        (expected,) = steps_in_a_row([case.alone()])
        if case.micro_batches == 1:
            assert [bool(step.counts["images"]) for step in steps] == [True, True, False]
            assert [bool(step.counts["signals"]) for step in steps] == [not case.tiles, False, not case.tiles]
        for number, (found, of_one) in enumerate(zip(steps, expected, strict=True)):
            compared = errors(found, of_one)
            assert max(compared[:4]) <= BOUND, (str(case.layout), number, compared)
        frozen = {part for part, key, _ in case.parts if key == "freeze"}
        moved = {name for name, weight in steps[-1].weights.items() if (weight != steps[0].weights[name]).any()}
        assert bool([n for n in moved if n.startswith("vision.") and not merges(n)]) == ("vision" not in frozen)
        assert bool([n for n in moved if merges(n)]) == ("merger" not in frozen)
        assert bool([n for n in moved if n.endswith("w13")]) == ("text" not in frozen)


def merges(name: str) -> bool:
    return name.startswith(("vision.merger.", "vision.projector."))


def evaluations(cases: Sequence[Case]) -> list[Any]:
    """Losses of held-out windows with media, before and after a step."""
    found = []
    for case in cases:
        parts, world = build_parts(case)
        data = open_synthetic(vocab_size=IMAGE, seq_len=case.seq_len, seed=1)
        heldout = with_media(data, case.config().model, case.seq_len, 1).heldout
        for number in range(2):
            micro = case.sequences // case.layout.readers
            measured = evaluate(
                parts.forward, parts.objective, heldout, world, parts.place, batches=2, micro_batch=micro
            )
            found.append(measured["heldout"])
            if number == 0:
                one_step(parts, world, step_batches(case, parts.place))
    return found


EVALUATED = {
    "quick": [
        Case(Layout(pp=2), towers=True, layers=2, micro_batches=2),
    ],
    "2 ranks": [
        Case(Layout(pp=2), ("zbv", 2), towers=True),
        Case(Layout(dp_shard=2), towers=True),
        Case(Layout(cp=2), seq_len=12, towers=True),
        Case(Layout(dp_shard=2), towers=True, balance=True),
    ],
    "4 ranks": [
        Case(Layout(pp=2, dp_shard=2), towers=True),
        Case(Layout(pp=2, dp_shard=2), towers=True, balance=True),
        Case(Layout(pp=2, cp=2, cp_kind="ring"), seq_len=12, towers=True, tiles=True),
        Case(Layout(dp_shard=4), towers=True, tiles=True),
    ],
}


@pytest.mark.parametrize("cases", of_each(EVALUATED))
def test_evaluations_with_media_are_those_of_one_process(cases):
    ranks = cases[0].layout.ranks
    expected = evaluations([case.alone() for case in cases])
    for found in on_ranks(ranks, evaluations, cases, init=True, timeout_s=240.0):  # the same on all ranks
        assert found == [pytest.approx(of_one, rel=1e-12) for of_one in expected]
    for before, after in zip(expected[::2], expected[1::2], strict=True):
        assert all(loss > 0 and abs(after[name] - loss) > 1e-6 for name, loss in before.items())
