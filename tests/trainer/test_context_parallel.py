"""Ranks that share sequences against one process in fp64: losses, every gradient, their norm, what is logged, held-out
losses and sample texts."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.layout import Place
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close
from tests.trainer.spread import MODEL, built, whole
from tests.trainer.tiny_run import events, tiny_config
from tests.trainer.tiny_run import steps as records
from trainer.config.keys import Config, ParallelConfig
from trainer.data.batch import IGNORE, Batch
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import read_totals
from trainer.optim.native import NativeEngine
from trainer.parallelize import share_of, unavailable
from trainer.run.evaluate import evaluate
from trainer.run.process import train
from trainer.run.sample import generate
from trainer.run.step import accumulate_gradients, count_step
from trainer.stages.forward import Whole

SEQ_LEN = 44  # 22 or 11 tokens a rank: pieces of a ring differ in length
ROWS = 4  # of a micro-batch over all ranks
MICRO_BATCHES = 2


class Found(NamedTuple):
    """counts: of the step, on the host. logged: its scalars over all ranks, and the gradients' norm."""

    counts: dict[str, int]
    logged: dict[str, float]
    gradients: dict[str, Tensor]
    heldout: float
    texts: list[list[int]]


def rows(first: int, count: int) -> Batch:
    """Windows of documents of any length, some of them without supervised tokens at their start."""
    ids, labels, positions, bounds = [], [], [], [0]
    for number in range(first, first + count):
        draw = torch.Generator().manual_seed(number)
        ids.append(torch.randint(64, (SEQ_LEN,), generator=draw))
        label, place, start = ids[-1].roll(-1), torch.arange(SEQ_LEN), 0
        while start < SEQ_LEN:
            length = min(int(torch.randint(1, 40, (), generator=draw)), SEQ_LEN - start)
            label[start + length - 1] = IGNORE
            label[start : start + int(torch.randint(0, 6, (), generator=draw))] = IGNORE
            place[start : start + length] = torch.arange(length)
            start += length
            bounds.append(SEQ_LEN * (number - first) + start)
        labels.append(label)
        positions.append(place)
    label = torch.stack(labels)
    return Batch(
        {"ids": torch.stack(ids), "positions": torch.stack(positions)},
        label,
        torch.tensor(bounds, dtype=torch.int32),
        int((label != IGNORE).sum()),
        range(first, first + count),
    )


class HeldOut:
    sources = ("all",)

    def batches(self, source: str, batches: int, micro_batch: int) -> list[Batch]:
        return [rows(100 + micro_batch * number, micro_batch) for number in range(batches)]


def config(parallel: dict[str, Any], changes: dict[str, Any]) -> Config:
    cfg = tiny_config("unused", model=MODEL | changes.get("model", {}), recompute=changes.get("recompute", "none"))
    cfg.parallel = ParallelConfig(**parallel)
    cfg.data.seq_len = SEQ_LEN
    return cfg


def step(parallel: dict[str, Any], changes: dict[str, Any]) -> Found:
    """One step over all ranks; the ranks that share sequences read the same ones."""
    cfg = config(parallel, changes)
    model, meshes = built(cfg, torch.float64)
    place, share, world = Place(), share_of(meshes, cfg), World()
    if meshes is not None:
        rank = dist.get_rank()
        place, world = meshes.layout.place(rank), World(rank=rank, size=meshes.layout.world, control=dist.new_group())
    engine = NativeEngine(model, cfg.optim, world, meshes.shard_group if meshes else None)
    engine.prepare()
    count = ROWS // place.readers
    forward, objective = Whole(model, share), NextToken(chunk=16)
    heldout = evaluate(forward, objective, HeldOut(), world, place, batches=1, micro_batch=count)
    texts = generate(forward, [model], [[3, 4, 5], [6], [7, 8]], tokens=3, eos_id=63, seed=0, world=world)
    batches = [rows(ROWS * number + count * place.reader, count) for number in range(MICRO_BATCHES)]
    counts = count_step(objective, batches, world, place)
    parts = [batch.part(share) for batch in batches]
    totals = accumulate_gradients(model, engine, objective, parts, counts["units"], world, step=1)
    world.sum_gradients([p for p in model.parameters() if type(p) is torch.nn.Parameter])
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    if world.size > 1:  # the engine sums them once more
        for parameter in model.parameters():
            if type(parameter) is torch.nn.Parameter:
                parameter.grad /= world.size
    logged = read_totals([totals], world)[0] | {"grad_norm": engine.step(1, 10)["grad_norm"].item()}
    return Found(counts, logged, gradients, heldout["heldout"]["all"], texts)


def steps(asked: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Found]:
    found = [step(parallel, changes) for parallel, changes in asked]
    return found if not dist.is_initialized() or dist.get_rank() == 0 else []


def check(ranks: int, *asked: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found = on_ranks(ranks, steps, list(asked), init=True, timeout_s=120.0)[0]
    for (parallel, changes), ours in zip(asked, found, strict=True):
        alone = one_process(tuple(sorted(changes.get("model", {}).items())))
        assert ours.counts == alone.counts, parallel
        assert ours.logged == pytest.approx(alone.logged, rel=1e-11), parallel
        assert_close(ours.gradients, alone.gradients, 1e-10)
        assert ours.heldout == pytest.approx(alone.heldout, rel=1e-11), parallel
        assert ours.texts == alone.texts, parallel


@cache
def one_process(model: tuple[tuple[str, Any], ...]) -> Found:
    return step({}, {"model": dict(model)})


def test_eight_ranks_that_share_sequences_and_experts_equal_one_process():
    check(
        8,
        ({"cp": 2, "cp_kind": "ring", "dp_shard": 4, "ep": 4}, {}),
        ({"cp": 4, "cp_kind": "ulysses", "dp_shard": 2, "ep": 2}, {}),
    )


@pytest.mark.slow
def test_every_layout_of_eight_ranks_that_share_sequences_equals_one_process():
    """Copies of a sharded model, no shards beside the sequence's, more ranks than router groups or kv heads, tokens
    sent by counts, and recomputation, which repeats the exchange."""
    one_group, four_groups = {"model": {"router_groups": 1}}, {"model": {"router_groups": 4}}
    check(
        8,
        ({"cp": 2, "cp_kind": "ulysses", "dp_replicate": 2, "dp_shard": 2, "ep": 4}, {}),
        ({"cp": 2, "cp_kind": "ring", "dp_replicate": 4, "dp_shard": 1, "ep": 2}, {}),
        ({"cp": 4, "cp_kind": "ring", "dp_shard": 2, "ep": 8}, four_groups),
        ({"cp": 4, "cp_kind": "ring", "dp_shard": 2, "ep": 2}, {"recompute": "selective"}),
        ({"cp": 4, "cp_kind": "ulysses", "dp_shard": 2, "ep": 4, "dispatch": "all_to_all"}, {"recompute": "full"}),
        ({"cp": 2, "cp_kind": "ring", "dp_shard": 4, "ep": 4}, one_group),
        ({"cp": 2, "cp_kind": "ulysses", "dp_shard": 4, "ep": 1, "reduce_every": "step"}, {"recompute": "selective"}),
    )


def rank_trains(cfg: Config) -> int:
    return train(cfg)


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_a_run_of_two_ranks_logs_what_one_process_does_which_continues_it(tmp_path, kind):
    def run(name: str, steps: int, cp: int = 1) -> Config:
        cfg = tiny_config(tmp_path / name, steps=steps, eval_every=2, schedule="constant", log_every=1)
        cfg.parallel = ParallelConfig(cp=cp, cp_kind=kind)
        return cfg

    assert train(run("one", 4)) == 0
    assert on_ranks(2, rank_trains, run("shared", 2, cp=2)) == [0, 0]
    assert train(run("shared", 4)) == 0
    for key in ("loss", "balance", "z", "max_load", "grad_norm", "tokens"):
        one, shared = ([float(record[key]) for record in records(tmp_path / name)] for name in ("one", "shared"))
        assert len(one) == 4
        assert shared == pytest.approx(one, rel=2e-5), key
    for one, shared in zip(*(events(tmp_path / name, "evaluation") for name in ("one", "shared")), strict=True):
        assert shared["heldout"]["synthetic"] == pytest.approx(one["heldout"]["synthetic"], rel=1e-5)


def test_a_ring_on_a_gpu_needs_16_bits():
    cfg, gpu = config({"cp": 2, "cp_kind": "ring"}, {}), torch.device("cuda")
    fault = unavailable(cfg, gpu)
    assert fault is not None
    assert (fault.where, fault.value, fault.allowed) == ("parallel.cp_kind", "ring", ("ulysses",))
    assert unavailable(cfg, torch.device("cpu")) is None
    assert unavailable(config({"cp": 2}, {}), gpu) is None
    cfg.precision.linears = "bf16"
    assert unavailable(cfg, gpu) is None
