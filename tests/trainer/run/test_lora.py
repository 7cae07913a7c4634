"""A run that trains adapters: the base stays as it is, is not in checkpoints, and is found again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from parallel.world import start_world
from tests.trainer.tiny_run import losses, tiny_config
from trainer.config.keys import Config, LoraConfig
from trainer.run import directory as rundir
from trainer.run.build import build
from trainer.run.process import train
from trainer.run.step import accumulate_gradients
from trainer.weights.export import export
from trainer.weights.opened import open_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A published directory: the export of a run of one step."""
    folder = tmp_path_factory.mktemp("base")
    assert train(tiny_config(folder / "run", steps=1, model={"init_std": 0.2})) == 0
    export(folder / "run", folder / "base", dtype="fp32")
    return folder / "base"


def lora_config(base: Path, directory: Path, lora: LoraConfig | None = None, **changed) -> Config:
    cfg = tiny_config(
        directory,
        **{"log_every": 1, "weight_decay": 0.0, "schedule": "constant", "model": {"init_std": 0.2}, **changed},
    )
    cfg.checkpoint.init_from = str(base)
    cfg.lora = lora or LoraConfig(target="all", rank=2, alpha=4.0, dropout=0.1, plus_ratio=4.0)
    return cfg


def digest(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_resumes_exactly_without_the_base_in_its_checkpoints(base, tmp_path):
    before = digest(base)
    assert train(lora_config(base, tmp_path / "whole", steps=6)) == 0
    cfg = lora_config(base, tmp_path / "parts", steps=3)
    assert train(cfg) == 0
    cfg.train.steps = 6
    assert train(cfg) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    names = open_checkpoint(tmp_path / "whole").state.tensors
    assert all("adapters" in name or ".experts.backend." in name for name in names if name.startswith("model."))
    assert digest(base) == before


def test_the_base_in_memory_is_untouched(base, tmp_path, monkeypatch):
    cfg = lora_config(base, tmp_path / "run", steps=2)
    run = rundir.RunDir(tmp_path / "run", "new")
    rundir.prepare(run, cfg)
    world = start_world("cpu")
    parts = build(cfg, run, world)
    before = {name: weight.clone() for name, weight in parts.model.state_dict().items()}
    engine = parts.engine
    batch = parts.data.stream.batch(0, 2)
    found = []
    for step in range(1, 9):
        totals = accumulate_gradients(parts.model, engine, parts.objective, [batch], 30, world, step=step)
        found.append(totals.values["loss"].item())
        engine.step(step, 8)
    assert found[-1] < 0.95 * found[0]
    changed = {name for name, weight in parts.model.state_dict().items() if not torch.equal(weight, before[name])}
    world.close()
    assert changed == set(engine.weights(parts.model))
    moments = {name.rpartition(".")[0] for name in engine.state() if name != "skipped"}
    assert moments == changed
