"""A run that trains adapters: the base stays as it is, is not in checkpoints, and is found again."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from parallel.world import start_world
from tests.printed import error_line
from tests.trainer.tiny_run import losses, tiny_config
from trainer.checkpoint.errors import CheckpointError
from trainer.config.checks.validate import validate
from trainer.config.keys import Config, LoraConfig, ParallelConfig
from trainer.engine.load import open_source
from trainer.model.lora.adapt import adapters, is_b
from trainer.run import directory as rundir
from trainer.run.build import build
from trainer.run.process import train
from trainer.run.step import accumulate_gradients
from trainer.storage.manifest import CHECKPOINT
from trainer.weights.export import export
from trainer.weights.lora.base import differing, identify
from trainer.weights.lora.peft import export_adapters
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


def test_b_learns_at_its_own_rate(base, tmp_path):
    """One step of SGD without momentum moves each weight by rate x gradient (LoRA+)."""
    lora = LoraConfig(target="all", rank=2, alpha=4.0, plus_ratio=4.0)
    cfg = lora_config(base, tmp_path / "run", lora, steps=2)
    cfg.optim.name, cfg.optim.momentum, cfg.optim.lr, cfg.optim.warmup_steps = "sgd", 0.0, 0.5, 0
    cfg.optim.clip_norm = 0.0
    run = rundir.RunDir(tmp_path / "run", "new")
    rundir.prepare(run, cfg)
    world = start_world("cpu")
    parts = build(cfg, run, world)
    of_adapters = adapters(parts.model)
    for name, weight in of_adapters.items():  # with B at zero A has no gradient
        if is_b(name):
            torch.nn.init.normal_(weight, std=0.1)
    accumulate_gradients(parts.model, parts.engine, parts.objective, [parts.data.stream.batch(0, 2)], 30, world, step=1)
    before = {name: weight.detach().clone() for name, weight in of_adapters.items()}
    gradients = {name: weight.grad.clone() for name, weight in of_adapters.items()}
    parts.engine.step(1, 8)
    assert {is_b(name) for name in of_adapters} == {True, False}
    for name, weight in of_adapters.items():
        rate = 0.5 * (4.0 if is_b(name) else 1.0)
        assert gradients[name].abs().max() > 1e-4
        torch.testing.assert_close(before[name] - weight, rate * gradients[name], rtol=1e-3, atol=1e-6)


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


def test_another_base_is_refused(base, tmp_path, capsys):
    mine = shutil.copytree(base, tmp_path / "base")
    cfg = lora_config(mine, tmp_path / "run", steps=1)
    assert train(cfg) == 0
    moved = shutil.copytree(mine, tmp_path / "moved")  # the same bytes elsewhere are the same base
    assert differing(identify(mine), identify(moved)) is None
    flip_last_bit(mine)
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(tmp_path / "run").state
    (fault,) = caught.value.faults
    assert fault.where == str(mine)
    cfg.train.steps = 2
    assert train(cfg) == 2
    assert error_line(capsys.readouterr().err, mine)
    shutil.rmtree(mine)
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(tmp_path / "run").state
    assert caught.value.faults[0].where == str(mine)
    # On another machine the configuration says where the base is, and its hash whether it is that one.
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace(str(mine), str(moved)))
    assert open_checkpoint(tmp_path / "run").state.base == moved
    flip_last_bit(moved)
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(tmp_path / "run").state
    assert caught.value.faults[0].where == str(mine)


def flip_last_bit(directory: Path) -> None:
    """In the directory's only file of tensors."""
    (file,) = directory.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_changed_base_with_its_old_manifest_is_refused_everywhere(base, tmp_path, capsys):
    mine = shutil.copytree(base, tmp_path / "base")
    CHECKPOINT.write(mine, {}, {file.name: CHECKPOINT.file_facts(file) for file in mine.iterdir()})
    cfg = lora_config(mine, tmp_path / "run", steps=1)
    assert train(cfg) == 0
    bare = shutil.copytree(mine, tmp_path / "bare")
    (bare / "manifest.json").unlink()
    saved, found = identify(mine), identify(bare)
    assert differing(saved, found) is None  # the same weights, copied without the manifest
    assert differing({"manifest": saved["manifest"]}, saved) is None  # as older checkpoints say it
    assert differing({"manifest": saved["manifest"]}, found) is not None
    flip_last_bit(mine)
    for read in (
        lambda: open_source(tmp_path / "run"),  # before a server says that it is there
        lambda: export(tmp_path / "run", tmp_path / "out", dtype="fp32"),
        lambda: export_adapters(open_checkpoint(tmp_path / "run"), tmp_path / "out", "peft"),
    ):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert caught.value.faults[0].where == str(mine)
        assert not (tmp_path / "out").exists()
    cfg.train.steps = 2
    assert train(cfg) == 2
    assert error_line(capsys.readouterr().err, mine)


def test_generation_uses_the_adapters(base, tmp_path):
    cfg = lora_config(base, tmp_path / "run", LoraConfig(target="all", rank=2), steps=3, lr=0.05, warmup_steps=0)
    assert train(cfg) == 0
    export(tmp_path / "run", tmp_path / "merged", dtype="fp32")
    ids = torch.arange(12).view(1, 12)
    found = {
        name: model.logits(model(ids).hidden)
        for name in ("run", "merged")
        for model in [open_source(tmp_path / name).load(torch.device("cpu"))]
    }
    plain = open_source(base).load(torch.device("cpu"))
    assert torch.equal(found["run"], found["merged"])
    assert (found["run"] - plain.logits(plain(ids).hidden)).abs().max() > 0.1


REFUSED = [
    ({}, {"target": "all"}, "checkpoint.init_from", "a Hugging Face directory"),
    ({"name": "muon"}, {"target": "all"}, "optim.name", ("adamw", "sgd")),
    ({"engine": "deepspeed"}, {"target": "all"}, "optim.engine", ("native",)),
    ({"offload": "cpu"}, {"target": "attention"}, "optim.offload", ("none",)),
    ({"objective": "contrastive"}, {"target": "all"}, "train.objective", ("next_token",)),
    ({}, {"target": "experts", "dropout": 0.1}, "lora.dropout", (0.0,)),
    ({}, {"dropout": 1.0}, "lora.dropout", "0 to below 1"),
    ({"model": {"expert_backend": "loop"}}, {"target": "experts"}, "model.expert_backend", ("grouped_mm",)),
    ({"model": {"expert_backend": "loop"}}, {"target": "attention"}, "model.expert_backend", ("grouped_mm",)),
]


@pytest.mark.parametrize(("changed", "lora", "where", "allowed"), REFUSED)
def test_what_is_refused(changed, lora, where, allowed):
    cfg = lora_config(Path("base"), Path("run"), LoraConfig(**lora), **changed)
    if where == "checkpoint.init_from":
        cfg.checkpoint.init_from = None
    faults = [fault for fault in validate(cfg, 1) if fault.where == where]
    assert [fault.allowed for fault in faults] == [allowed]


def test_experts_cut_across_their_width_have_no_adapters():
    cfg = lora_config(Path("base"), Path("run"), LoraConfig(target="experts"))
    cfg.parallel = ParallelConfig(ep=4, dp_shard=4)
    (fault,) = [fault for fault in validate(cfg, 4) if fault.where == "parallel.ep"]
    assert fault.allowed == (1, 2)
    cfg.lora.target = "attention"
    assert not [fault for fault in validate(cfg, 4) if fault.where == "parallel.ep"]
