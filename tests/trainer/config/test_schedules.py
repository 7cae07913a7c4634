"""Schedules of a pipeline that split backward refuse what autograd can run only once, each with values that work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parallel.errors import Fault
from parallel.pipeline.plan import RULES
from tests.trainer.tiny_run import tiny_config
from trainer.config.checks.precision import TRANSFORMER_ENGINE
from trainer.config.checks.validate import validate
from trainer.config.keys import Config, ParallelConfig, PrecisionConfig

SPLIT = ("interleaved_zero_bubble", "zbv", "dualpipev")
WHOLE = ("1f1b", "interleaved_1f1b")
RANKS = 2


def pipeline(schedule: str, experts: str = "fp32", **train: Any) -> Config:
    """Four layers on two ranks, with sizes that FP8 experts take; `train` are keys of `train`."""
    cfg = tiny_config("unused", model={"num_layers": 4, "expert_width": 32}, global_batch=8, micro_batch=1, **train)
    cfg = replace(cfg, parallel=ParallelConfig(pp=RANKS, schedule=schedule))
    return replace(cfg, precision=PrecisionConfig(experts=experts))


def only_fault(cfg: Config) -> Fault:
    (fault,) = validate(cfg, RANKS)
    assert fault.text.count("\n") == 0
    assert all(f"parallel.schedule={cfg.parallel.schedule}" in fault.text and word in fault.text for word in WHOLE)
    return fault


def test_these_are_all_schedules():
    assert tuple(name for name, rule in RULES.items() if rule.splits_backward) == SPLIT
    assert {*SPLIT, *WHOLE} == RULES.keys()


@pytest.mark.parametrize("schedule", [*SPLIT, *WHOLE])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_recomputation_of_whole_blocks_is_not_refused(schedule, recompute):
    assert validate(pipeline(schedule, recompute=recompute), RANKS) == []


@pytest.mark.parametrize("schedule", SPLIT)
@pytest.mark.parametrize("recompute", ["selective", "attention", "experts"])
def test_recomputation_of_a_part_is_refused(schedule, recompute):
    fault = only_fault(pipeline(schedule, recompute=recompute))
    assert (fault.where, fault.value, fault.allowed) == ("train.recompute", recompute, ("full", "none"))
    for works in fault.allowed:
        assert validate(pipeline(schedule, recompute=works), RANKS) == []


@pytest.mark.parametrize("schedule", SPLIT)
def test_compiled_blocks_are_refused(schedule):
    fault = only_fault(pipeline(schedule, compile=True))
    assert (fault.where, fault.value, fault.allowed) == ("train.compile", True, (False,))


@pytest.mark.parametrize("schedule", SPLIT)
@pytest.mark.parametrize("experts", TRANSFORMER_ENGINE)
def test_transformer_engine_is_refused(schedule, experts):
    fault = only_fault(pipeline(schedule, experts))
    assert (fault.where, fault.value, fault.allowed) == ("parallel.schedule", schedule, WHOLE)


@pytest.mark.parametrize("schedule", SPLIT)
def test_a_reduction_in_each_micro_batch_is_refused(schedule):
    cfg = pipeline(schedule)
    cfg.parallel.reduce_every = "micro_batch"
    fault = only_fault(cfg)
    assert (fault.where, fault.value, fault.allowed) == ("parallel.reduce_every", "micro_batch", ("auto", "step"))


@pytest.mark.parametrize("schedule", WHOLE)
@pytest.mark.parametrize(
    ("experts", "train"),
    [
        *((experts, {}) for experts in TRANSFORMER_ENGINE),
        *(("fp32", {"recompute": recompute}) for recompute in ("selective", "attention", "experts")),
        ("fp32", {"compile": True}),
    ],
    ids=str,
)
def test_schedules_with_one_backward_pass_take_them(schedule, experts, train):
    assert validate(pipeline(schedule, experts, **train), RANKS) == []
