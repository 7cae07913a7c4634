"""Adapters in pipelines: a step against one process in fp64, and runs that export the same files."""

from __future__ import annotations

import pytest

from tests.trainer.stages.layouts import Case, Layout
from tests.trainer.stages.matrix import faults, run_cases

CASES = [
    Case(Layout(pp=2), lora="all", layers=3, micro_batches=2),
    Case(Layout(pp=2), ("zbv", 2), lora="attention", layers=5, micro_batches=4),
    Case(Layout(pp=2), ("interleaved_zero_bubble", 2), lora="experts", layers=5, micro_batches=4, recompute="full"),
    Case(Layout(pp=2, dp_shard=2, ep=2), lora="all"),
    Case(Layout(pp=2, dp_shard=2), ("dualpipev", 2), lora="all", recompute="full"),
    Case(Layout(pp=2, dp_replicate=2), ("interleaved_1f1b", 2), lora="attention"),
    Case(Layout(pp=2, cp=2, ep=2), lora="all", seq_len=12),
    Case(Layout(pp=2, dp_shard=2, ep=2), lora="experts", reduce_every="micro_batch"),
]


def check(cases: list[Case]) -> None:
    assert [fault for case, found in run_cases(cases) for fault in faults(case, found)] == []


def test_a_step_of_a_pipeline_is_that_of_one_process():
    check(CASES[:1])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_under_every_schedule_and_layout(ranks):
    check([case for case in CASES[1:] if case.layout.ranks == ranks])
