"""Gradients that a pipeline's stages reduce over the ranks in every micro-batch: the same numbers, less memory."""

from __future__ import annotations

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.stages.layouts import Case, Layout, errors, reference, run_steps
from trainer.config.checks.unused import without_effect
from trainer.config.ranks import map_ranks

SHARDED = Layout(pp=2, dp_shard=2, ep=2)
CASES = [
    Case(SHARDED, reduce_every="micro_batch"),
    Case(Layout(pp=2, dp_shard=2), ("interleaved_1f1b", 2), reduce_every="micro_batch"),
]
MORE = [
    Case(Layout(pp=2, dp_replicate=2, dp_shard=2, ep=2), recompute="full", reduce_every="micro_batch"),
    Case(Layout(pp=2, cp=2, ep=2), dispatch="all_to_all", reduce_every="micro_batch", seq_len=12),
    Case(Layout(pp=2, dp_shard=4, ep=2), ("interleaved_1f1b", 2), reduce_every="micro_batch", optim="adamw"),
]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)], ids=lambda case: str(case.layout)
)
def test_a_step_equals_one_process(case):
    found = on_ranks(case.layout.ranks, run_steps, [case], init=True)[0][0]
    assert max(errors(found, reference(case.alone()))[:4]) <= 1e-10


@pytest.mark.parametrize(
    ("layout", "accumulate", "unused"),
    [
        (SHARDED, "fp32", []),
        (SHARDED, "bf16", ["precision.accumulate=bf16"]),
        (Layout(pp=2), "fp32", ["parallel.reduce_every=micro_batch"]),
    ],
    ids=str,
)
def test_where_it_changes_nothing(layout, accumulate, unused):
    cfg = CASES[0]._replace(layout=layout).config()
    cfg.precision.accumulate = accumulate
    found = without_effect(cfg, map_ranks(cfg.parallel, cfg.model, layout.ranks))
    assert [line.split(" ", 1)[0] for line in found] == unused
