"""Runs that start from published weights, and directories exported from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from parallel.world import start_world
from tests.trainer.tiny_run import tiny_config
from trainer.checkpoint.state import training_tensors
from trainer.checkpoint.store import CheckpointStore
from trainer.config.keys import Config, ParallelConfig
from trainer.run import directory as rundir
from trainer.run.build import build as build_run
from trainer.weights.hf_config import model_config_from_huggingface
from trainer.weights.hf_files import read_json

EIGHT = (1, 8, 8)
ONE = (1, 1, 1)


def config(source: Path, directory: Path, layout: tuple[int, int, int] = ONE, **changed: Any) -> Config:
    """Configuration of a run that starts from the weights in `source`."""
    ranks = layout[0] * layout[1]
    cfg = tiny_config(directory, global_batch=8, micro_batch=8 // ranks, **{"steps": 1, **changed})
    cfg.model = model_config_from_huggingface(read_json(source / "config.json"))
    cfg.parallel = ParallelConfig(dp_replicate=layout[0], dp_shard=layout[1], ep=layout[2])
    cfg.checkpoint.init_from = str(source)
    return cfg


def save_at_once(source: Path, directory: Path, layout: tuple[int, int, int]) -> None:
    """A training checkpoint of what was read, before any step. On every rank."""
    cfg, world = config(source, directory, layout), start_world("cpu")
    run = rundir.RunDir(directory, "new")
    if world.rank == 0:
        rundir.prepare(run, cfg)
    parts = build_run(cfg, run, world)
    store = CheckpointStore(directory / "checkpoints", keep=1, world=world, warn=print)
    store.save(0, training_tensors(list(parts.stages.values()), parts.engine, world.rank), {})
    saved = store.wait()
    assert saved is not None
    assert saved.error is None
    world.close()


def loaded(directory: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in directory.glob("model*.safetensors"):
        found |= load_file(file)
    return found


def assert_bitwise(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def in_bf16(published: Path, directory: Path) -> Path:
    """As released checkpoints are: all BF16, but for tables that stay as they are computed."""
    shutil.copytree(published, directory)
    kept = ("rotary_emb", "pos_encoder.pe")
    tensors = {
        name: tensor if any(part in name for part in kept) else tensor.bfloat16()
        for name, tensor in load_file(published / "model.safetensors").items()
    }
    (directory / "model.safetensors").chmod(0o644)
    save_file(tensors, directory / "model.safetensors")
    return directory
