"""Ranks of a layout built without memory or peers, against the same layout on real processes; and one of 512."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from parallel.layout import Place
from parallel.memory.live import LiveBytes, Peak
from parallel.simulate import Collective, RankBytes
from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import tiny_config
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.keys import Config, ParallelConfig, PrecisionConfig
from trainer.config.memory import rank_memory
from trainer.config.model import ModelConfig
from trainer.data.build import build_data
from trainer.objectives.choose import build_objective
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes, share_of
from trainer.run.build import build_model
from trainer.run.simulate import simulate_rank, trace_step

RANKS = 8
# 8 ranks divide neither the vocabulary nor the hidden size, so that shards are uneven.
MODEL = {
    "vocab_size": 61, "hidden_size": 36, "num_experts": 16, "experts_per_token": 8, "router_groups": 8,
    "expert_width": 16,
}  # fmt: skip


def layout(dp_replicate: int, dp_shard: int, ep: int, compute: str = "fp32", payload: str = "", **other: Any) -> Config:
    """`other`: keys of `parallel`, `train`, `optim` or the model."""
    sizes = {"dp_replicate": dp_replicate, "dp_shard": dp_shard, "ep": ep}
    model = {key: other.pop(key) for key in list(other) if key in ModelConfig.__dataclass_fields__}
    sizes |= {key: other.pop(key) for key in list(other) if key in ParallelConfig.__dataclass_fields__}
    batch = {"micro_batch": 1, "global_batch": RANKS, "loss_chunk": 8}
    cfg = tiny_config("unused", model=MODEL | model, **batch | other)
    precision = PrecisionConfig(linears=compute, experts=compute, payload=payload or compute)
    return replace(cfg, parallel=ParallelConfig(**sizes), precision=precision)


LAYOUTS = {
    "experts on 8": layout(1, 8, 8),
    "experts on 4 of 8": layout(1, 8, 4),
    "two copies": layout(2, 4, 2),
    "experts on 2 of 8": layout(1, 8, 2),
    "width cut in two": layout(1, 8, 8, router_groups=4),
    "replicas, sgd": layout(8, 1, 1, name="sgd"),
    "two micro-batches, recomputed": layout(2, 4, 2, global_batch=2 * RANKS, recompute="full", compute="bf16"),
    "five micro-batches": layout(2, 4, 2, global_batch=5 * RANKS, reduce_every="step", regather=True),
    "two copies, muon": layout(2, 4, 2, name="muon"),
    "fp8 between ranks": layout(1, 8, 8, compute="bf16", payload="fp8", regather=True),
    "one process": layout(1, 1, 1),
    "shared sequences": layout(1, 4, 8, cp=2),
    "every option": layout(1, 8, 4, combine="reduce_scatter", reshard_experts=True, overlap=2, regather=True),
}
# copies, a sharded copy, bf16 and recompute; the others are slow
QUICK = {"two micro-batches, recomputed"}
ALL_RANKS = ("experts on 4 of 8", "two copies")


def real_rank(cfg: Config) -> tuple[RankBytes, list[Collective], Peak]:
    """The second step of a run: in the first one dispatchers compare numbers of tokens."""
    world = start_world("cpu", 60.0)
    data = build_data(cfg.data, seed=0, vocab_size=cfg.model.vocab_size)
    meshes, objective = build_meshes(cfg, "cpu"), build_objective(cfg.train)
    model = build_model(cfg, world, meshes, objective)
    engine = NativeEngine(model, cfg.optim, world, meshes and meshes.shard_group)
    engine.prepare()
    place, share = meshes.layout.place(world.rank) if meshes else Place(), share_of(meshes, cfg)
    count = cfg.train.global_batch // (cfg.train.micro_batch * place.readers)
    for _ in range(2):
        batches = [
            data.stream.batch(number * place.readers + place.reader, cfg.train.micro_batch).part(share)
            for number in range(count)
        ]
        live = LiveBytes()
        memory, collectives = trace_step([model], engine, objective, batches, cfg, world, meshes, live=live)
    world.close()
    return memory, collectives, live.peak()


def whole_norms(cfg: Config) -> int:
    """Elements that every rank holds: beside bf16 linears the norms of queries and keys are not cut."""
    return cfg.model.num_layers * 2 * cfg.model.head_dim if cfg.precision.linears == "bf16" else 0


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in LAYOUTS])
def test_every_rank_holds_and_sends_what_a_real_one_does(name):
    """For most layouts the first rank, the last, which has the short shards, and one of another replica or group."""
    cfg = LAYOUTS[name]
    ranks = cfg.parallel.dp_replicate * cfg.parallel.dp_shard * cfg.parallel.cp
    real = on_ranks(ranks, real_rank, cfg)
    for rank in range(ranks) if name in ALL_RANKS else sorted({0, 5 % ranks, ranks - 1}):
        simulated = simulate_rank(cfg, ranks, rank)
        assert simulated.memory == real[rank][0]
        assert simulated.peak.total == pytest.approx(real[rank][2].total, rel=0.05)  # the documents differ
        counted = rank_memory(cfg, ranks, rank)
        held = simulated.memory
        assert (counted.weights, counted.gradients, counted.optimizer) == (held.weights, held.gradients, held.optimizer)
        assert simulated.collectives == real[rank][1]
    copies = cfg.parallel.dp_replicate
    elements = cfg.model.num_params() * copies + whole_norms(cfg) * (ranks - copies)
    assert sum(held.weights for held, *_ in real) == 4 * elements
    assert sum(held.gradients for held, *_ in real) == 4 * elements


@pytest.mark.parametrize(
    ("cfg", "fault"),
    [
        (layout(8, 1, 1, engine="deepspeed"), ("optim.engine", ("native",))),
        (layout(1, 8, 4, objective="contrastive"), ("train.objective", ("next_token", "policy"))),
        (layout(1, 8, 8, num_layers=10**8), ("model.num_layers", "1000 or less")),
    ],
    ids=["another engine", "another objective", "too many layers"],
)
def test_a_layout_that_needs_its_other_ranks_is_refused(cfg, fault):
    with pytest.raises(ConfigError) as caught:
        simulate_rank(cfg, RANKS, 0)
    assert (caught.value.where, caught.value.allowed) == fault


@pytest.mark.parametrize(
    "cfg",
    [
        layout(1, 8, 8, compute="bf16", num_heads=6, num_kv_heads=3),
        replace(layout(1, 8, 4), precision=PrecisionConfig(moments="bf16")),
        layout(8, 1, 1, name="sgd", momentum=0.0),
        layout(1, 8, 4, name="muon"),
        layout(1, 8, 1, router_groups=1),
    ],
    ids=["odd heads", "narrow moments", "no momentum", "muon", "one router group"],
)
def test_a_count_without_building_is_exact(cfg):
    for rank in (0, RANKS - 1):
        held, counted = simulate_rank(cfg, RANKS, rank).memory, rank_memory(cfg, RANKS, rank)
        assert (counted.weights, counted.gradients, counted.optimizer) == (held.weights, held.gradients, held.optimizer)
        assert counted.exact


def test_muon_sends_pieces_once_and_no_expert_that_a_rank_holds_whole():
    cfg = layout(1, 8, 8, name="muon", router_groups=8)
    calls = [call for call in simulate_rank(cfg, RANKS, 0).collectives if call.where == "optimizer"]
    exchanges = [call for call in calls if call.op == "all_to_all"]
    assert len(exchanges) == 2
    dense = cfg.model.hidden_matrix_params() - 3 * cfg.model.num_layers * cfg.model.num_experts * (
        cfg.model.expert_width * cfg.model.hidden_size
    )
    assert all(0 < call.nbytes <= 4 * dense for call in exchanges)


@pytest.mark.slow
def test_one_rank_of_512_of_the_largest_model():
    words = ["recipe=toy", "model=intern_s1_pro_text", "precision=bf16", "data.seq_len=4096"]
    words += ["parallel.dp_replicate=4", "parallel.ep=8", "train.micro_batch=1", "train.global_batch=512"]
    cfg = compose(words, world_size=512)
    began = time.process_time()
    simulated = simulate_rank(cfg, 512, 300)
    assert time.process_time() - began < 60
    # 128 ranks share a copy, and every dimension divides.
    share = 4 * ((cfg.model.num_params() - whole_norms(cfg)) // 128 + whole_norms(cfg))
    assert (simulated.memory.weights, simulated.memory.gradients, simulated.memory.padding) == (share, share, 0)
    tensors = 3 + 9 * cfg.model.num_layers  # each with two moments and a step; and two counts of skipped steps
    assert simulated.memory.optimizer == 2 * share + 4 * (tensors + 2)
    calls = Counter((call.op, call.axis, call.ranks) for call in simulated.collectives if call.axis == "ep")
    assert calls == {("all_gather", "ep", 8): 2 * 94, ("all_to_all", "ep", 8): 2 * 94}
