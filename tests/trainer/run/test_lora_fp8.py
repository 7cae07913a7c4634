"""A run that trains adapters of a base in FP8: on one process, on two and on eight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from parallel.fp8 import TILE, fake_quantize
from parallel.memory.live import LiveBytes
from parallel.sharding.local import local_part
from parallel.simulate import RankBytes
from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import steps, tiny_config
from trainer.config.compose import compose
from trainer.config.keys import Config, LoraConfig, ParallelConfig, PrecisionConfig
from trainer.data.build import build_data
from trainer.model.frozen.hold import held
from trainer.model.lora.adapt import adapters, rates
from trainer.objectives.choose import build_objective
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes
from trainer.run.build import build_model
from trainer.run.process import train
from trainer.run.simulate import simulate_rank, trace_step
from trainer.weights.export import export
from trainer.weights.kept_source import open_published
from trainer.weights.lora.peft import export_adapters
from trainer.weights.opened import open_checkpoint

# Widths of several blocks, the last ones cut.
MODEL = {
    "hidden_size": 136, "head_dim": 24, "num_heads": 8, "num_kv_heads": 8, "num_experts": 16, "experts_per_token": 8,
    "router_groups": 8, "expert_width": 160, "init_std": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A directory in FP8: the export of a run of one step."""
    folder = tmp_path_factory.mktemp("base")
    assert train(tiny_config(folder / "run", steps=1, model=MODEL)) == 0
    export(folder / "run", folder / "base", dtype="fp8")
    return folder / "base"


def configuration(base: Path, directory: Path, stored: str = "fp8", **sizes: Any) -> Config:
    cfg = tiny_config(
        directory, steps=2, log_every=1, global_batch=8, micro_batch=1, model=MODEL, loss_chunk=8, schedule="constant",
        name="sgd", lr=0.1,
    )  # fmt: skip
    cfg.checkpoint.init_from = str(base)
    cfg.lora = LoraConfig(target="all", rank=2, base=stored)
    cfg.parallel = ParallelConfig(**sizes)
    return cfg


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def losses(directory: Path) -> list[float]:
    return [record["loss"] for record in steps(directory)]


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory) -> Config:
    """The configuration of a run of one process."""
    cfg = configuration(base, tmp_path_factory.mktemp("alone") / "run")
    assert train(cfg) == 0
    return cfg


def test_one_process_trains_as_on_the_dequantised_base(base, alone, tmp_path):
    assert train(configuration(base, tmp_path / "linears", "linears")) == 0
    found = losses(Path(str(alone.run.dir)))
    assert found == pytest.approx(losses(tmp_path / "linears"), rel=1e-6)
    first, *_, last = found
    assert abs(last - first) > 1e-4


def held_bytes(cfg: Config) -> tuple[int, int, int]:
    """The bytes of this rank's codes, of its experts' scales, and of its adapters."""
    world = start_world("cpu", 60.0)
    meshes = build_meshes(cfg, "cpu")
    published = open_published(cfg, world)
    assert published is not None
    model = build_model(cfg, world, meshes, build_objective(cfg.train), published.fill)
    codes = sum(local_part(matrix.codes).nbytes for matrix in held(model))
    scales = sum(matrix.scaled.scales.nbytes for matrix in held(model) if matrix.experts is not None)
    world.close()
    return codes, scales, sum(local_part(weight.detach()).nbytes for weight in adapters(model).values())


LAYOUTS = {
    "experts on 2": (2, {"dp_shard": 2, "ep": 2}, True),
    "experts on 8": (8, {"dp_shard": 8, "ep": 8}, False),
    "experts on 2 of 4": (4, {"dp_shard": 4, "ep": 2}, False),
    "shared sequences": (4, {"dp_shard": 1, "cp": 4, "ep": 4}, False),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if quick else pytest.mark.slow) for n, (*_, quick) in LAYOUTS.items()]
)
def test_ranks_hold_the_base_once_and_train_as_one_process(base, alone, tmp_path, name):
    ranks, sizes, _ = LAYOUTS[name]
    spread = configuration(base, tmp_path / "spread", **sizes)
    assert set(on_ranks(ranks, train, spread)) == {0}
    assert losses(tmp_path / "spread") == pytest.approx(losses(Path(str(alone.run.dir))), rel=2e-6)
    whole, parts = held_bytes(alone), on_ranks(ranks, held_bytes, spread)
    assert tuple(map(sum, zip(*parts, strict=True)))[0::2] == whole[0::2]
    copies = ranks // sizes["ep"]  # ranks that share an expert's width have its scales whole
    assert sum(scales for _, scales, _ in parts) == copies * whole[1]
    cfg = alone.model
    matrices = 3 * cfg.num_experts * cfg.expert_width + 4 * cfg.num_heads * cfg.head_dim
    assert whole[0] == cfg.num_layers * matrices * cfg.hidden_size


@pytest.mark.slow
def test_a_pipeline_trains_and_exports_as_one_process(base, alone, tmp_path):
    spread = configuration(base, tmp_path / "spread", pp=2, dp_shard=2, ep=2)
    assert set(on_ranks(4, train, spread)) == {0}
    assert losses(tmp_path / "spread") == pytest.approx(losses(Path(str(alone.run.dir))), rel=2e-6)
    runs = {"alone": Path(str(alone.run.dir)), "spread": tmp_path / "spread"}
    for name, run in runs.items():
        export(run, tmp_path / "merged" / name, dtype="fp32")
        export_adapters(open_checkpoint(run), tmp_path / "peft" / name, "peft")
    for form in ("merged", "peft"):
        found, expected = (load_all(tmp_path / form / name) for name in ("spread", "alone"))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (found[name] - tensor).norm() <= 1e-3 * tensor.norm(), (form, name)


@pytest.mark.slow
def test_adapters_resume_under_another_layout(base, alone, tmp_path):
    """Each step by other ranks: two with two groups of experts, one process, a pipeline."""
    for steps_done, (ranks, sizes) in enumerate([(2, {"dp_shard": 2, "ep": 2}), (1, {}), (2, {"pp": 2})], start=1):
        cfg = configuration(base, tmp_path / "turns", **sizes)
        cfg.train.steps = steps_done
        assert set(on_ranks(ranks, train, cfg)) == {0}
    whole = configuration(base, tmp_path / "whole")
    whole.train.steps = 3
    assert train(whole) == 0
    assert losses(tmp_path / "turns") == pytest.approx(losses(tmp_path / "whole"), rel=2e-6)
    assert losses(tmp_path / "whole")[:2] == losses(Path(str(alone.run.dir)))


def frozen_bytes(cfg: Config) -> tuple[set[torch.dtype], int]:
    """The dtypes and the bytes of this rank's frozen matrices."""
    world = start_world("cpu", 60.0)
    meshes = build_meshes(cfg, "cpu")
    published = open_published(cfg, world)
    assert published is not None
    model = build_model(cfg, world, meshes, build_objective(cfg.train), published.fill)
    matrices = [w for block in model.blocks for w in (block.attention.qkv, block.attention.out, block.moe.experts.w13,
                                                      block.moe.experts.w2)]  # fmt: skip
    world.close()
    return {weight.dtype for weight in matrices}, sum(local_part(weight).nbytes for weight in matrices)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"dp_shard": 2, "ep": 2}, {"dp_shard": 2}, {"dp_replicate": 2}], ids=str)
def test_a_base_in_bf16_spread_over_ranks(base, tmp_path, sizes):
    found = []
    for name, parallel in (("alone", {}), ("spread", sizes)):
        cfg = configuration(base, tmp_path / name, "linears", **parallel)
        cfg.precision = PrecisionConfig(linears="bf16", experts="bf16", payload="bf16")
        ranks = 2 if parallel else 1
        assert set(on_ranks(ranks, train, cfg)) == {0}
        found.append((losses(tmp_path / name), on_ranks(ranks, frozen_bytes, cfg)))
    (ours, parts), (expected, [(_, whole)]) = found[1], found[0]
    assert ours == pytest.approx(expected, rel=5e-3)  # sums of ranks round in another order
    assert all(dtypes == {torch.bfloat16} for dtypes, _ in parts)
    assert sum(size for _, size in parts) == whole * sizes.get("dp_replicate", 1)
    m = cfg.model
    matrices = 3 * m.num_experts * m.expert_width + 4 * m.num_heads * m.head_dim
    assert whole == 2 * m.num_layers * matrices * m.hidden_size


def test_a_merge_in_fp8_is_the_rounded_merge(base, alone, tmp_path):
    run = Path(str(alone.run.dir))
    for dtype in ("fp32", "fp8"):
        export(run, tmp_path / dtype, dtype=dtype)
    merged, rounded = (load_all(tmp_path / dtype) for dtype in ("fp32", "fp8"))
    before = load_all(base)
    scaled = {name for name in merged if f"{name}_scale_inv" in rounded}
    for name in scaled:
        values = fake_quantize(merged[name].bfloat16().float(), (TILE, TILE))
        scales = rounded[f"{name}_scale_inv"].float().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
        rows, columns = values.shape
        assert torch.equal(rounded[name].float() * scales[:rows, :columns], values), name
    assert len(scaled) == alone.model.num_layers * (4 + 3 * alone.model.num_experts)
    assert any(not torch.equal(rounded[name].view(torch.uint8), before[name].view(torch.uint8)) for name in scaled)


def real_step(cfg: Config) -> tuple[RankBytes, int]:
    """The bytes that this rank holds after the backward pass of its second step, and the most in that step."""
    world = start_world("cpu", 60.0)
    meshes, objective = build_meshes(cfg, "cpu"), build_objective(cfg.train)
    published = open_published(cfg, world)
    assert published is not None
    assert meshes is not None
    model = build_model(cfg, world, meshes, objective, published.fill)
    engine = NativeEngine(model, cfg.optim, world, meshes.shard_group, rates=rates(model, cfg.lora))
    engine.prepare()
    stream = build_data(cfg.data, seed=0, vocab_size=cfg.model.vocab_size).stream
    place = meshes.layout.place(world.rank)
    for _ in range(2):
        live, batch = LiveBytes(), stream.batch(place.reader, cfg.train.micro_batch)
        memory, _ = trace_step([model], engine, objective, [batch], cfg, world, meshes, live=live)
    world.close()
    return memory, live.peak().total


@pytest.mark.slow
@pytest.mark.parametrize("target", ["attention", "all"])
def test_a_simulated_rank_has_the_memory_of_a_real_one(base, tmp_path, target):
    cfg = configuration(base, tmp_path / "run", dp_shard=2, ep=2)
    cfg.lora.target, cfg.train.recompute, cfg.train.global_batch = target, "full", 2
    cfg.precision = PrecisionConfig(linears="bf16", experts="bf16", payload="bf16")
    for rank, (memory, peak) in enumerate(on_ranks(2, real_step, cfg)):
        simulated = simulate_rank(cfg, 2, rank)
        assert simulated.memory == memory
        assert simulated.peak.total == pytest.approx(peak, rel=0.05)


@pytest.mark.slow
def test_the_rehearsal_holds_its_base_once_on_eight_ranks(tmp_path):
    """recipe=lora_intern_s1_pro_8xh200_rehearsal, on short synthetic sequences."""
    data = ["data=synthetic", "data.seq_len=32", "train.device=cpu", "train.eval_batches=1"]
    words = ["recipe=toy_ep8", *data, "train.steps=1", f"run.dir={tmp_path / 'run'}"]
    assert train(compose(words, world_size=1)) == 0
    export(tmp_path / "run", tmp_path / "base", dtype="fp8")
    words = ["recipe=lora_intern_s1_pro_8xh200_rehearsal", *data, "train.steps=4", "train.log_every=1"]
    words += [f"checkpoint.init_from={tmp_path / 'base'}"]
    for stored in ("linears", "fp8"):
        cfg = compose([*words, f"lora.base={stored}", f"run.dir={tmp_path / stored}"], world_size=8)
        assert set(on_ranks(8, train, cfg)) == {0}
    assert losses(tmp_path / "fp8") == pytest.approx(losses(tmp_path / "linears"), rel=1e-6)
    assert len(set(losses(tmp_path / "fp8"))) == 4
    m = cfg.model
    matrices = 3 * m.num_experts * m.expert_width + 2 * (m.num_heads + m.num_kv_heads) * m.head_dim
    parts = on_ranks(8, held_bytes, cfg)
    assert sum(codes for codes, *_ in parts) == m.num_layers * matrices * m.hidden_size
    assert len({codes for codes, *_ in parts}) == 1
