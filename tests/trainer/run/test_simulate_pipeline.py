"""Stages of a pipeline built without memory or peers, against the same ones on eight real processes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from parallel.memory.live import LiveBytes, Peak
from parallel.simulate import Collective, RankBytes
from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import tiny_config
from trainer.config.compose import compose
from trainer.config.keys import Config, ParallelConfig, PrecisionConfig
from trainer.config.memory import rank_memory
from trainer.config.ranks import map_ranks
from trainer.data.build import build_data
from trainer.objectives.choose import build_objective
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes
from trainer.run.build import build_pipeline, build_stages, ranks_alike
from trainer.run.simulate import simulate_rank, trace_step

RANKS = 8
# Shards of the vocabulary and the hidden size are uneven.
MODEL = {
    "vocab_size": 61, "hidden_size": 36, "num_layers": 4, "num_experts": 16, "experts_per_token": 8, "router_groups": 8,
    "expert_width": 16,
}  # fmt: skip


def layout(
    pp: int,
    dp_replicate: int,
    dp_shard: int,
    ep: int,
    *,
    schedule: Any = "1f1b",
    compute: Any = "fp32",
    reduce_every: Any = "auto",
    **train: Any,
) -> Config:
    """With as many micro-batches as reach the steady state."""
    sizes = {"pp": pp, "dp_replicate": dp_replicate, "dp_shard": dp_shard, "ep": ep}
    parallel = ParallelConfig(**sizes, schedule=schedule, reduce_every=reduce_every)
    cfg = tiny_config("unused", model=MODEL, micro_batch=1, loss_chunk=8, **train)
    precision = PrecisionConfig(linears=compute, experts=compute, payload=compute)
    cfg = replace(cfg, parallel=parallel, precision=precision)
    ranks = map_ranks(parallel, cfg.model, RANKS)
    cfg.train.global_batch = ranks.layout.readers * ranks.plan.steady(1000)
    return cfg


LAYOUTS = {
    "two stages, experts on 2 of 4": layout(2, 1, 4, 2, compute="bf16", recompute="full"),
    "two stages, experts on all": layout(2, 1, 4, 4),
    "four stages": layout(4, 1, 2, 2, recompute="full"),
    "four stages, experts shared": layout(4, 1, 2, 1, recompute="full"),
    "copies": layout(2, 2, 2, 1, recompute="full"),
    "interleaved": layout(2, 1, 4, 2, schedule="interleaved_1f1b", recompute="full"),
    "reduced in each micro-batch": layout(2, 1, 4, 2, reduce_every="micro_batch", compute="bf16", recompute="full"),
    "zero bubble": layout(2, 1, 4, 2, schedule="zbv"),
}
QUICK = {"two stages, experts on 2 of 4"}


def real_rank(cfg: Config) -> tuple[RankBytes, list[Collective], Peak]:
    """The second step of a run: in the first one dispatchers compare numbers of tokens."""
    world = start_world("cpu", 60.0)
    data = build_data(cfg.data, seed=0, vocab_size=cfg.model.vocab_size)
    meshes, objective = build_meshes(cfg, "cpu"), build_objective(cfg.train)
    assert meshes is not None
    alike, place = ranks_alike(world, meshes), meshes.layout.place(world.rank)
    plan, stages = build_stages(cfg, world, alike, meshes, place, objective)
    pipeline, _ = build_pipeline(cfg, plan, stages, objective, alike, meshes)
    engine = NativeEngine(list(stages.values()), cfg.optim, world, meshes.shard_group, None, alike)
    engine.prepare()
    count = cfg.train.global_batch // place.readers
    for _ in range(2):
        batches = [data.stream.batch(number * place.readers + place.reader, 1) for number in range(count)]
        live = LiveBytes()
        memory, calls = trace_step(
            list(stages.values()), engine, objective, batches, cfg, world, meshes, pipeline=pipeline, live=live
        )
    world.close()
    return memory, calls, live.peak()


def assert_outside_passes(calls: list[Collective], *, stages: int) -> None:
    """Experts are gathered before the first micro-batch's forward pass, and reduced after the last one's backward pass,
    or where a rank has several stages after that of each stage."""
    experts = [(number, call.op, call.micro_batch) for number, call in enumerate(calls) if call.axis == "expert_dp"]
    assert {micro_batch for _, _, micro_batch in experts} <= {None}
    passes = [number for number, call in enumerate(calls) if call.micro_batch is not None]
    assert all(number < passes[0] for number, op, _ in experts if op == "all_gather")
    if stages == 1:
        assert all(number > passes[-1] for number, op, _ in experts if op != "all_gather")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LAYOUTS])
def test_every_stage_holds_and_sends_what_a_real_one_does(name):
    cfg = LAYOUTS[name]
    real = on_ranks(RANKS, real_rank, cfg)
    for rank in (0, RANKS - 1):  # the last has the short shards
        simulated = simulate_rank(cfg, RANKS, rank)
        memory, calls, peak = real[rank]
        assert simulated.memory == memory
        assert simulated.collectives == calls
        each = cfg.parallel.reduce_every == "micro_batch"
        # The documents differ, and real collectives free what they reduce a little later.
        assert simulated.peak.total == pytest.approx(peak.total, rel=0.1 if each else 0.05)
        held = simulated.peak
        assert (held.weights, held.gathered, held.gradients) == (peak.weights, peak.gathered, peak.gradients)
        counted = rank_memory(cfg, RANKS, rank)
        assert (counted.weights, counted.gradients, counted.optimizer) == (
            memory.weights, memory.gradients, memory.optimizer
        )  # fmt: skip
        assert counted.gathered == held.gathered
        assert counted.activations <= held.kept
        if each:  # parts in place of whole ones, some of them padded
            assert (counted.accumulated, held.gradients) == (0, pytest.approx(counted.gradients, rel=0.01))
            continue
        assert counted.accumulated == held.gradients
        experts = [call for call in calls if call.axis == "expert_dp"]
        layers = sum(cut.stop - cut.start for cut in simulated.stages.values())
        shared = map_ranks(cfg.parallel, cfg.model, RANKS).layout.expert_dp > 1
        assert len(experts) == 2 * layers * shared  # one gather and one reduction of each layer's experts a step
        assert_outside_passes(calls, stages=len(simulated.stages))
        assert simulated.traffic.per_micro_batch["expert_dp"] == 0


@pytest.mark.slow
def test_more_micro_batches_change_only_what_is_sent():
    cfg = LAYOUTS["two stages, experts on 2 of 4"]
    short = simulate_rank(cfg, RANKS, 0)
    cfg = replace(cfg, train=replace(cfg.train, global_batch=3 * cfg.train.global_batch))
    long = simulate_rank(cfg, RANKS, 0)
    assert (long.ran, long.micro_batches) == (short.ran, 3 * short.micro_batches)
    assert long.peak == short.peak
    sent = long.traffic.of_step(long.micro_batches)
    assert sent["pp"] == pytest.approx(3 * short.traffic.of_step(short.micro_batches)["pp"], rel=0.01)
    assert sent["expert_dp"] == short.traffic.once["expert_dp"] > 0


@pytest.mark.slow  # a minute each; `octavo layout` builds the same ones, and the docs run it
@pytest.mark.parametrize("rank", [0, 16 * 16, 31 * 16])
def test_a_stage_of_the_largest_recipe_fits_an_80_gb_gpu(rank):
    cfg = compose(["recipe=cpt_6t"], world_size=512)
    began = time.process_time()
    simulated = simulate_rank(cfg, 512, rank)
    assert time.process_time() - began < 60
    assert simulated.peak.total < 0.9 * 80e9 - 2e9
    counted = rank_memory(cfg, 512, rank)
    assert (counted.gathered, counted.accumulated) == (simulated.peak.gathered, simulated.peak.gradients)
    assert_outside_passes(simulated.collectives, stages=1)
    traffic = simulated.traffic
    assert traffic.per_micro_batch["expert_dp"] == 0
    experts = 3 * 64 * 1536 * 4096 * sum(cut.stop - cut.start for cut in simulated.stages.values())
    assert traffic.once["expert_dp"] == experts * (2 + 4) // 2  # gathered in bf16, reduced in fp32, between two ranks
