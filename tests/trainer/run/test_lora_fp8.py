"""A run that trains adapters of a base in FP8: on one process, on two and on eight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallel.sharding.local import local_part
from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import steps, tiny_config
from trainer.config.keys import Config, LoraConfig, ParallelConfig
from trainer.model.frozen.hold import held
from trainer.model.lora.adapt import adapters
from trainer.objectives.choose import build_objective
from trainer.parallelize import build_meshes
from trainer.run.build import build_model
from trainer.run.process import train
from trainer.weights.export import export
from trainer.weights.kept_source import open_published

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
        directory, steps=3, log_every=1, global_batch=8, micro_batch=1, model=MODEL, loss_chunk=8, schedule="constant",
        name="sgd", lr=0.1,
    )  # fmt: skip
    cfg.checkpoint.init_from = str(base)
    cfg.lora = LoraConfig(target="all", rank=2, base=stored)
    cfg.parallel = ParallelConfig(**sizes)
    return cfg


def losses(directory: Path) -> list[float]:
    return [record["loss"] for record in steps(directory)]


def test_one_process_trains_as_on_the_dequantised_base(base, tmp_path):
    for stored in ("fp8", "linears"):
        assert train(configuration(base, tmp_path / stored, stored)) == 0
    assert losses(tmp_path / "fp8") == pytest.approx(losses(tmp_path / "linears"), rel=1e-6)
    first, *_, last = losses(tmp_path / "fp8")
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
def test_ranks_hold_the_base_once_and_train_as_one_process(base, tmp_path, name):
    ranks, sizes, _ = LAYOUTS[name]
    alone, spread = configuration(base, tmp_path / "alone"), configuration(base, tmp_path / "spread", **sizes)
    assert train(alone) == 0
    assert set(on_ranks(ranks, train, spread)) == {0}
    assert losses(tmp_path / "spread") == pytest.approx(losses(tmp_path / "alone"), rel=2e-6)
    whole, parts = held_bytes(alone), on_ranks(ranks, held_bytes, spread)
    assert tuple(map(sum, zip(*parts, strict=True)))[0::2] == whole[0::2]
    copies = ranks // sizes["ep"]  # ranks that share an expert's width have its scales whole
    assert sum(scales for _, scales, _ in parts) == copies * whole[1]
    cfg = alone.model
    matrices = 3 * cfg.num_experts * cfg.expert_width + 4 * cfg.num_heads * cfg.head_dim
    assert whole[0] == cfg.num_layers * matrices * cfg.hidden_size
