"""Steps of models with towers, whose ranks have unequal images and signals or none: loss, every gradient and their norm
are those of one process, in fp64."""

from __future__ import annotations

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.stages.layouts import Case, Layout, errors, reference, run_steps
from trainer.config.compose import compose
from trainer.config.memory import rank_memory
from trainer.run.simulate import simulate_rank

BOUND, BALANCED_BOUND = 1e-10, 1e-12
CASES = {
    2: [
        Case(Layout(pp=2), towers=True),
        Case(Layout(pp=2), ("dualpipev", 2), recompute="full", towers=True),
        Case(Layout(dp_shard=2), towers=True),
        Case(Layout(dp_shard=2, ep=2), recompute="full", towers=True),
        Case(Layout(dp_replicate=2), towers=True),
        Case(Layout(cp=2), seq_len=12, towers=True),
        Case(Layout(cp=2, cp_kind="ring", ep=2), seq_len=12, towers=True),
        Case(Layout(pp=2), recompute="full", towers=True, tiles=True),
        Case(Layout(dp_shard=2), towers=True, tiles=True),
        Case(Layout(cp=2), seq_len=12, towers=True, tiles=True),
    ],
    4: [
        Case(Layout(pp=2, dp_shard=2, ep=2), towers=True),
        Case(Layout(dp_replicate=2, dp_shard=2), towers=True),
        Case(Layout(dp_shard=2, cp=2, cp_kind="ring", ep=2), seq_len=12, towers=True),
        Case(Layout(dp_shard=4, ep=2), dispatch="all_to_all", recompute="selective", towers=True),
        Case(Layout(pp=2, cp=2, cp_kind="ring", ep=2), seq_len=12, towers=True, tiles=True),
    ],
}


# Images that other ranks run. Eight sequences: four ranks have two each.
SPREAD = Case(towers=True, many_images=True, balance=True)
BALANCED = {
    "quick": [SPREAD._replace(layout=Layout(dp_shard=2), layers=2, micro_batches=3)],
    "two": [
        SPREAD._replace(layout=Layout(dp_replicate=2), recompute="full"),
        SPREAD._replace(layout=Layout(dp_shard=2), tiles=True),
        SPREAD._replace(layout=Layout(cp=2), seq_len=12),
        SPREAD._replace(layout=Layout(cp=2, cp_kind="ring", ep=2), seq_len=12, recompute="selective"),
    ],
    "four": [
        SPREAD._replace(layout=Layout(dp_shard=4, ep=2), sequences=8, dispatch="all_to_all"),
        SPREAD._replace(layout=Layout(dp_replicate=2, dp_shard=2), sequences=8, recompute="full"),
        SPREAD._replace(layout=Layout(dp_shard=2, cp=2), seq_len=12, sequences=8),
        SPREAD._replace(layout=Layout(pp=2, dp_shard=2, ep=2)),
        SPREAD._replace(layout=Layout(pp=2, dp_shard=2), tiles=True, recompute="full"),
        SPREAD._replace(layout=Layout(pp=2, dp_shard=2), schedule=("interleaved_zero_bubble", 2)),
        SPREAD._replace(layout=Layout(pp=2, dp_replicate=2), schedule=("dualpipev", 2), recompute="full"),
    ],
}


@pytest.mark.parametrize(
    "name", ["quick", pytest.param("two", marks=pytest.mark.slow), pytest.param("four", marks=pytest.mark.slow)]
)
def test_a_step_whose_images_run_on_other_ranks_is_that_of_one_process(name):
    cases = BALANCED[name]
    found = on_ranks(cases[0].layout.ranks, run_steps, cases, init=True, timeout_s=240.0)[0]
    for case, step in zip(cases, found, strict=True):
        compared = errors(step, reference(case.alone()))
        assert max(compared[:4]) <= BALANCED_BOUND, (str(case.layout), compared)
        assert step.load.tower_load < step.load.tower_load_before, case.layout


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_step_with_unequal_media_is_that_of_one_process(ranks):
    cases = CASES[ranks]
    found = on_ranks(ranks, run_steps, cases, init=True, timeout_s=240.0)[0]
    for case, step in zip(cases, found, strict=True):
        expected = reference(case.alone())
        assert (step.counts["images"], step.counts["signals"]) == ((6, 0) if case.tiles else (4, 5))
        towers = {"vision"} if case.tiles else {"vision", "signals"}
        assert {name.partition(".")[0] for name in expected.grads} >= towers | {"layers", "embed"}
        compared = errors(step, expected)
        assert max(compared[:4]) <= BOUND, (str(case.layout), compared)


def test_the_memory_of_a_rank_counts_its_towers():
    words = ["recipe=toy", "model=toy_multimodal", "data=synthetic", "data.seq_len=64", "train.micro_batch=1"]
    words += ["parallel.pp=2", "parallel.dp_shard=2", "train.device=cpu", "parallel.balance_towers=true"]
    cfg = compose(words, world_size=4)
    for rank in (0, 2):
        found, counted = simulate_rank(cfg, 4, rank), rank_memory(cfg, 4, rank)
        assert not any(call.axis == "towers" for call in found.collectives)  # its images are as large as the others'
        sizes = (found.memory.weights, found.memory.gradients, found.memory.optimizer)
        assert sizes == (counted.weights, counted.gradients, counted.optimizer)
