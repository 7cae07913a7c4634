"""Runs that train the towers of a checkpoint: from published weights through a resume at another layout to an export
under published names, which published code reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.cli import main
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.stages.media import IMAGE, SIGNAL, SIGNALS, VISION
from tests.trainer.tiny_run import steps, tiny_config
from tests.trainer.weights.exports import config, loaded
from tests.trainer.weights.towers.outside import assert_others_compute_the_same
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.data.errors import DataError
from trainer.data.media.synthetic import with_media
from trainer.data.synthetic import open_synthetic
from trainer.run.process import train
from trainer.weights import kept_source
from trainer.weights.export import export
from trainer.weights.hf_files import open_directory
from trainer.weights.towers.config import multimodal_config_from_huggingface
from trainer.weights.towers.names import tower_of
from trainer.weights.towers.read import load_multimodal, published_tensors

TOWERS = {"vision": VISION, "image_token": IMAGE, "signals": SIGNALS, "signal_token": SIGNAL}
UNTRAINED = "model.vision_tower.embeddings.mask_token"  # that published files may hold, and no tower has


def run_of(source: Path, run: Path, **overrides: object) -> Config:
    """A run that trains the text model and the towers."""
    cfg = config(source, run, log_every=1, lr=1e-2, warmup_steps=0, **overrides)
    cfg.model = multimodal_config_from_huggingface(open_directory(source).config)
    cfg.data.seq_len = 32
    return cfg


def on_two_ranks(cfg: Config) -> None:
    assert train(cfg) == 0


@pytest.mark.parametrize("name", ["interns1", "interns1_pro"])
def test_towers_of_a_checkpoint_are_trained_and_exported_under_their_names(tmp_path, reference, name):
    source = shutil.copytree(reference / "tiny" / name, tmp_path / "source")
    stored = load_file(source / "model.safetensors")
    if name == "interns1":
        stored[UNTRAINED] = torch.full((1, 1, 48), 0.1, dtype=torch.bfloat16)
        save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    cfg = run_of(source, tmp_path / "run", steps=2, every=2)
    cfg.optim.parts.signals.freeze = cfg.model.signals is not None
    assert train(cfg) == 0
    shutil.rmtree(source)
    cfg.train.steps = 4
    cfg.train.micro_batch, cfg.parallel.dp_shard = 4, 2
    on_ranks(2, on_two_ranks, cfg, init=False, timeout_s=120.0)
    assert [record["step"] for record in steps(tmp_path / "run")] == [1, 2, 3, 4]
    assert sum(record["images"] for record in steps(tmp_path / "run")) > 0
    export(tmp_path / "run", tmp_path / "out")

    written = loaded(tmp_path / "out")
    assert written.keys() == stored.keys()
    assert {key: (t.dtype, t.shape) for key, t in written.items()} == {k: (t.dtype, t.shape) for k, t in stored.items()}
    towers = {key for key in written if tower_of(key)} - {UNTRAINED}
    moved = {key for key in towers if not torch.equal(written[key], stored[key])}
    assert moved == {key for key in towers if tower_of(key) != "time series"}  # which was frozen
    if UNTRAINED in stored:
        assert torch.equal(written[UNTRAINED], stored[UNTRAINED])
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["vision_config"] == cfg_section(reference / "tiny" / name, "vision_config")

    model = load_multimodal(tmp_path / "out")
    assert all(torch.equal(tensor, written[key].float()) for key, tensor in published_tensors(model))
    again = replace(cfg.model, expert_backend=model.cfg.expert_backend)
    assert multimodal_config_from_huggingface(described) == again
    assert_others_compute_the_same(tmp_path / "out", load_file(reference / "tiny" / name / "ref.safetensors"))


def cfg_section(directory: Path, name: str) -> object:
    return json.loads((directory / "config.json").read_text())[name]


def test_random_towers_are_exported_and_read_again(tmp_path):
    cfg = tiny_config(tmp_path / "run", model={"vocab_size": 80, "hidden_size": 16, **TOWERS}, steps=1)
    assert train(cfg) == 0
    export(tmp_path / "run", tmp_path / "out", dtype="fp32")
    model = load_multimodal(tmp_path / "out")
    text = {"vision", "image_token", "signals", "signal_token", "num_experts", "router_groups", "positions"}
    assert {key: getattr(model.cfg, key) for key in text} == {key: getattr(cfg.model, key) for key in text}
    assert sum(p.numel() for p in model.parameters()) == cfg.model.num_params()
    export(tmp_path / "run", tmp_path / "text", dtype="fp32", text_only=True)
    assert not [name for name in loaded(tmp_path / "text") if tower_of(name)]


def test_a_run_with_other_towers_is_refused(tmp_path, reference):
    cfg = run_of(reference / "tiny" / "interns1_pro", tmp_path / "run", steps=1)
    cfg.model.vision = replace(cfg.model.vision, num_layers=3)
    with pytest.raises(ConfigError) as refused:
        kept_source.open_published(cfg, World())
    (fault,) = refused.value.faults
    assert fault.where == "checkpoint.init_from"
    assert "model.vision.num_layers is 3 in this run but 2 in the checkpoint;" in fault.text


def test_the_other_name_of_pro_is_read_and_kept(tmp_path, reference):
    """`interns1_1`, which serving engines take for interns1_pro."""
    source = shutil.copytree(reference / "tiny" / "interns1_pro", tmp_path / "source")
    described = json.loads((source / "config.json").read_text())
    described |= {"model_type": "interns1_1", "architectures": ["InternS1_1_ForConditionalGeneration"]}
    (source / "config.json").write_text(json.dumps(described))
    assert train(run_of(source, tmp_path / "run", steps=1)) == 0
    export(tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (described["model_type"], described["architectures"])
    assert loaded(tmp_path / "out").keys() == loaded(source).keys()


def test_synthetic_windows_too_short_for_a_tile_are_refused():
    model = compose(["recipe=toy", "model=intern_s1", "data=synthetic", "data.seq_len=1024"]).model
    data = open_synthetic(vocab_size=100, seq_len=1023, seed=1)
    with pytest.raises(DataError) as refused:
        with_media(data, model, 1023, 1)
    assert (refused.value.where, refused.value.value) == ("data.seq_len", 1023)


@pytest.mark.parametrize(("name", "recipe"), [("interns1", "intern_s1"), ("interns1_pro", "intern_s1_pro")])
def test_inspect_prints_the_towers_as_overrides(reference, capsys, name, recipe):
    source = reference / "tiny" / name
    assert main(["inspect", str(source)]) == 0
    words = [word for word in capsys.readouterr().out.split() if word.startswith("model.") and "=" in word]
    model = compose(["recipe=toy", f"model={recipe}", "data=synthetic", "data.seq_len=64", *words]).model
    published = multimodal_config_from_huggingface(open_directory(source).config)
    towers = ("vision", "image_token", "signals", "signal_token")
    assert [getattr(model, key) for key in towers] == [getattr(published, key) for key in towers]
