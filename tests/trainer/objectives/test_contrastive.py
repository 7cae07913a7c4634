"""The contrastive objective: its formula, its pairs, and two ranks that equal one process in every gradient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close, build, model_config, relative
from tests.trainer.spread import whole
from tests.trainer.tiny_run import events, steps, tiny_config
from trainer.config.keys import Config, ParallelConfig
from trainer.data.synthetic import open_synthetic
from trainer.model.decoder import Decoder
from trainer.model.pooling import PIECE, means
from trainer.objectives.contrastive import Contrastive, halve, info_nce, pairs
from trainer.objectives.scalars import GlobalBatch
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes, parallelize
from trainer.run.process import train
from trainer.run.step import accumulate_gradients

NAMES = {"loss", "accuracy", "similarity", "temperature", "balance", "z", "max_load", "grad_norm"}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_info_nce_is_the_formula():
    a, b = normal(5, 7, seed=1).requires_grad_(), normal(5, 7, seed=2).requires_grad_()
    found = info_nce(a, b, 0.3, GlobalBatch(units=5))
    total, hits = torch.zeros((), dtype=torch.float64), 0
    for one, other in ((a, b), (b, a)):
        for i in range(5):
            scores = [one[i] @ other[j] / one[i].norm() / other[j].norm() / 0.3 for j in range(5)]
            total = total - (scores[i] - torch.stack(scores).exp().sum().log())
            hits += max(range(5), key=lambda j: scores[j].item()) == i
    assert relative(found.total, total / 10) <= 1e-12
    for grad, by_hand in zip(
        torch.autograd.grad(found.total, (a, b)), torch.autograd.grad(total / 10, (a, b)), strict=True
    ):
        assert relative(grad, by_hand) <= 1e-12
    assert found["accuracy"].normalised.item() == pytest.approx(hits / 10)
    assert found["temperature"].value == 0.3
    cosines = torch.nn.functional.cosine_similarity(a, b)
    assert relative(found["similarity"].normalised, cosines.mean()) <= 1e-12


def test_documents_are_cut_in_halves_and_single_tokens_left_alone():
    bounds, first = halve(torch.tensor([0, 5, 6, 8], dtype=torch.int32))
    assert bounds.tolist() == [0, 3, 5, 6, 7, 8]
    assert bounds.dtype == torch.int32
    assert first.tolist() == [0, 3]
    bounds, first = halve(torch.tensor([0, 1], dtype=torch.int32))
    assert (bounds.tolist(), first.tolist()) == ([0, 1], [])


def test_a_half_is_embedded_as_if_it_were_alone():
    """The mean of its own hidden states, from its own position 0: nothing of the other half is seen."""
    model = build(model_config(), dtype=torch.float64)
    batch = open_synthetic(vocab_size=61, seq_len=24, seed=1).stream.batch(0, 3)
    a, b = pairs(model(**Contrastive(0.1).inputs(batch)).hidden, batch)
    documents = [(s, e) for s, e in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True) if e - s > 1]
    assert len(a) == len(b) == len(documents) == Contrastive(0.1).count(batch)
    ids = batch.inputs["ids"].flatten()
    for number, (start, end) in enumerate(documents):
        middle = (start + end + 1) // 2
        for found, part in ((a[number], ids[start:middle]), (b[number], ids[middle:end])):
            assert relative(found, model(part[None])[0][0].mean(0)) <= 1e-12


@pytest.mark.parametrize("value", [0.1, 0.9999])
def test_the_mean_of_a_long_document_is_right(value):
    """Documents of 40,000 tokens, of one, and of the sizes around a piece."""
    lengths = [1, PIECE - 1, PIECE, PIECE + 1, 40_000, 1]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    x = torch.full((sum(lengths), 2), value, requires_grad=True)
    found = means(x, bounds)
    torch.testing.assert_close(found.double(), torch.full((6, 2), x[0, 0].double().item()).double(), rtol=1e-6, atol=0)
    (found * torch.arange(6.0)[:, None]).sum().backward()
    for number, part in enumerate(x.grad.split(lengths)):
        assert part.sum(0).tolist() == pytest.approx([number] * 2, rel=1e-4)
        assert (part == part[0]).all()


def test_a_batch_without_a_pair_trains_the_routers_alone():
    model = build(model_config(balance_coef=0.1))
    batch = open_synthetic(vocab_size=61, seq_len=1, seed=1).stream.batch(0, 3)
    scalars = Contrastive(0.1)(model, batch, GlobalBatch(units=1))
    assert scalars["loss"].value == scalars["accuracy"].value == 0
    scalars.total.backward()
    assert model.blocks[0].moe.router.weight.grad.any()


# ---- ranks

MODEL = {"num_experts": 32, "experts_per_token": 8, "router_groups": 8, "init_std": 0.2, "z_loss_coef": 1e-3}
BATCH = 8
LAYOUTS = {"copies": (2, 1, 1), "shards": (1, 2, 1), "experts": (1, 2, 2)}


def layout(sizes: tuple[int, int, int]) -> Config:
    cfg = tiny_config("unused", model=MODEL, name="sgd", lr=1.0, schedule="constant", warmup_steps=0, clip_norm=0.0)
    cfg.optim.momentum = cfg.optim.weight_decay = 0.0
    cfg.parallel = ParallelConfig(**dict(zip(("dp_replicate", "dp_shard", "ep"), sizes, strict=True)))
    return cfg


def one_step(cfg: Config, world: World) -> tuple[dict[str, Tensor], float, float, list[int]]:
    """The gradients of two micro-batches (what one step of SGD at a rate of 1 takes off the weights), their norm, the
    loss, and how many pairs each micro-batch has on this rank."""
    with torch.device("meta"):
        model = Decoder(cfg.model).double()
    model.lm_head.requires_grad_(False)
    meshes = build_meshes(cfg, "cpu")
    parallelize(model, meshes, cfg, "cpu")
    model.to_empty(device="cpu")
    model.init_weights(3)
    engine = NativeEngine(model, cfg.optim, world, None if meshes is None else meshes.shard_group)
    engine.prepare()
    before = {name: whole(weight) for name, weight in model.named_parameters()}
    data, objective = open_synthetic(vocab_size=64, seq_len=48, seed=1), Contrastive(0.5)
    rows = BATCH // 2 // world.size
    batches = [data.stream.batch(micro * BATCH // 2 + world.rank * rows, rows) for micro in range(2)]
    pairs = [objective.count(batch) for batch in batches]
    units = world.sum_counts(units=sum(pairs))["units"]
    totals = accumulate_gradients(model, engine, objective, batches, units, world, step=1)
    loss = world.sum_tensor(totals.values["loss"].clone()).item()
    norm = engine.step(1, 10)["grad_norm"].item()
    return {name: before[name] - whole(weight) for name, weight in model.named_parameters()}, norm, loss, pairs


def rank_steps() -> list[tuple[dict[str, Tensor], float, float, list[int]]]:
    world = World(rank=dist.get_rank(), size=dist.get_world_size())
    return [one_step(layout(sizes), world) for sizes in LAYOUTS.values()]


def test_two_ranks_equal_one_process_in_every_gradient():
    grads, norm, loss, pairs = one_step(layout((1, 1, 1)), World())
    assert not grads["lm_head"].any()
    assert all(grad.any() for name, grad in grads.items() if name != "lm_head")
    by_rank = on_ranks(2, rank_steps, init=True, timeout_s=120.0)
    for number, name in enumerate(LAYOUTS):
        counts = [of_rank[number][3] for of_rank in by_rank]
        assert [sum(both) for both in zip(*counts, strict=True)] == pairs
        assert counts[0] != counts[1], "ranks with different numbers of pairs are what this is about"
        for their_grads, their_norm, their_loss, _ in (of_rank[number] for of_rank in by_rank):
            assert their_loss == pytest.approx(loss, rel=1e-10), name
            assert their_norm == pytest.approx(norm, rel=1e-10), name
            assert_close(their_grads, grads, 1e-10)


# ---- whole runs


def run_config(directory: Path, **changed: Any) -> Config:
    return tiny_config(directory, objective="contrastive", contrastive_temperature=0.2, eval_every=4, **changed)


def check_record(directory: Path) -> None:
    """Every scalar of every step by its name, and the held-out ones of every evaluation."""
    record = steps(directory)
    assert len(record) == 8
    for step in record:
        assert set(step) >= NAMES
        assert all(math.isfinite(step[name]) for name in NAMES)
        assert step["temperature"] == pytest.approx(0.2)
    evaluations = events(directory, "evaluation")
    assert len(evaluations) == 2
    for evaluation in evaluations:
        assert evaluation["heldout"]["synthetic"] > 0
        assert 0 <= evaluation["heldout_accuracy"]["synthetic"] <= 1
        assert "unigram" not in evaluation


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_a_run_on_a_gpu_logs_the_same_scalars(tmp_path, kernels):
    """In fp32, with the operations of plain torch and of Triton; its first loss is that of the same run on the CPU."""
    cfg = run_config(tmp_path / "gpu", micro_batch=2, kernels=kernels)
    cfg.train.device = "cuda"
    assert train(cfg) == 0
    assert train(run_config(tmp_path / "cpu", micro_batch=2)) == 0
    check_record(tmp_path / "gpu")
    first, expected = steps(tmp_path / "gpu")[0], steps(tmp_path / "cpu")[0]
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def rank_trains(cfg: Config) -> int:
    return train(cfg)


def test_a_run_logs_its_scalars_by_name_on_one_rank_and_on_two(tmp_path):
    assert train(run_config(tmp_path / "one", micro_batch=2)) == 0
    assert on_ranks(2, rank_trains, run_config(tmp_path / "two", micro_batch=1)) == [0, 0]
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert len(one) == len(two) == 8
    for mine, theirs in zip(one, two, strict=True):
        assert set(theirs) >= NAMES
        for name in NAMES:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
    check_record(tmp_path / "one")


def test_it_learns(tmp_path):
    cfg = run_config(tmp_path, steps=40, global_batch=8, micro_batch=8)
    cfg.data.seq_len, cfg.train.eval_batches, cfg.train.eval_every = 64, 4, 10
    assert train(cfg) == 0
    found = [step["loss"] for step in steps(tmp_path)]
    assert sum(found[-8:]) / 8 < sum(found[:8]) / 8 - 0.3
    first, *_, last = events(tmp_path, "evaluation")
    assert last["heldout"]["synthetic"] < first["heldout"]["synthetic"] - 0.1
    assert last["heldout_accuracy"]["synthetic"] > first["heldout_accuracy"]["synthetic"]


def test_the_recipe_trains(tmp_path):
    from trainer.config.compose import compose

    words = ["recipe=toy_contrastive", "data=synthetic", "data.seq_len=32", "train.steps=2", "train.global_batch=2"]
    words += ["train.micro_batch=2", "logging.console=off", "train.device=cpu", f"run.dir={tmp_path}"]
    assert train(compose(words)) == 0
    assert set(steps(tmp_path)[-1]) >= NAMES
