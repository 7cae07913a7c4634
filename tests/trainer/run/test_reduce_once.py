"""Gradients that are reduced over the ranks once a step: the same numbers, fewer bytes on the wire."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.spread import Spread, built, whole
from trainer.config.checks.unused import without_effect
from trainer.config.ranks import map_ranks
from trainer.data.synthetic import open_synthetic
from trainer.objectives.next_token import NextToken
from trainer.optim.native import NativeEngine
from trainer.run.simulate import trace_step
from trainer.run.step import Between, accumulate_gradients

MICRO_BATCHES = 16


def gradients(options: dict[str, Any], dtype: torch.dtype, accumulate: str) -> tuple[dict[str, Tensor], Counter[str]]:
    """Whole gradients of a step of two ranks, and its collectives by kind."""
    cfg = Spread(1, 2, 1, options=tuple(options.items())).config()
    if dtype == torch.float32:
        cfg.precision.linears = cfg.precision.experts = cfg.precision.payload = "bf16"
    cfg.precision.accumulate = accumulate
    model, meshes = built(cfg, dtype)
    rank = torch.distributed.get_rank()
    world = World(rank=rank, size=2)
    engine = NativeEngine(model, cfg.optim, world, meshes.shard_group)
    engine.prepare()
    stream = open_synthetic(vocab_size=cfg.model.vocab_size, seq_len=16, seed=1).stream
    batches = [stream.batch(2 * number + rank, 1) for number in range(MICRO_BATCHES)]
    once = cfg.parallel.reduce_every == "step"
    accumulate_gradients(model, engine, NextToken(32), batches, 400, world, step=1, between=Between(reduce_once=once))
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    world = World(rank=rank, size=2, control=torch.distributed.new_group())
    _, calls = trace_step([model], engine, NextToken(32), batches, cfg, world, meshes)
    return found, Counter(call.op for call in calls)


def relative(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    ours, theirs = (torch.cat([of[name].double().flatten() for name in exact]) for of in (found, exact))
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_the_same_gradients_with_one_reduce_scatter_a_weight_group():
    often, every_time = on_ranks(2, gradients, {}, torch.float64, "fp32", init=True)[0]
    once, one_time = on_ranks(2, gradients, {"reduce_every": "step"}, torch.float64, "fp32", init=True)[0]
    assert set(once) == set(often)
    assert relative(once, often) <= 1e-14
    assert every_time["reduce_scatter"] == MICRO_BATCHES * one_time["reduce_scatter"]


@pytest.mark.slow
def test_sums_of_micro_batches_in_bf16_round_by_its_precision():
    """A sum of 16 in bf16 is off by some of its roundings of 2^-9 each, whatever the dtype over the ranks."""
    step = {"reduce_every": "step"}
    exact, wide, narrow = (
        on_ranks(2, gradients, options, torch.float32, accumulate, init=True)[0][0]
        for options, accumulate in (({}, "fp32"), (step, "fp32"), (step, "bf16"))
    )
    assert {grad.dtype for grad in narrow.values()} == {torch.float32}
    assert relative(wide, exact) <= 1e-6
    assert 1e-4 <= relative(narrow, exact) <= 6e-3


@pytest.mark.parametrize(
    ("ranks", "options", "accumulate", "unused"),
    [
        (2, {"reduce_every": "step"}, "bf16", []),
        (2, {}, "bf16", ["precision.accumulate=bf16"]),
        (1, {"reduce_every": "step"}, "bf16", ["precision.accumulate=bf16", "parallel.reduce_every=step"]),
    ],
)
def test_where_they_change_nothing(ranks, options, accumulate, unused):
    cfg = Spread(1, ranks, 1, options=tuple(options.items())).config()
    cfg.precision.accumulate = accumulate
    found = without_effect(cfg, map_ranks(cfg.parallel, cfg.model, ranks))
    assert [line.split(" ", 1)[0] for line in found] == unused
