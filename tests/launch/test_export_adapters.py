"""`octavo export --adapter`: adapters alone, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launch.commands.export import prepare
from parallel.errors import UserError
from tests.trainer.tiny_run import tiny_config
from trainer import api
from trainer.config.command_line import Parser
from trainer.config.keys import LoraConfig
from trainer.run.process import train
from trainer.weights.export import export


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """A run of a whole model, and one of adapters on its export."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(tiny_config(folder / "whole", steps=1)) == 0
    export(folder / "whole", folder / "base")
    cfg = tiny_config(folder / "adapters", steps=1)
    cfg.lora, cfg.checkpoint.init_from = LoraConfig(target="all", rank=2, rslora=True), str(folder / "base")
    assert train(cfg) == 0
    return folder / "whole", folder / "adapters"


def test_adapters_alone(runs, tmp_path, capsys):
    target = tmp_path / "out"
    assert prepare(Parser("export", ""), [str(runs[1]), str(target), "--adapter", "peft", "--dtype", "bf16"])() == 0
    assert {path.name for path in target.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    described = json.loads((target / "adapter_config.json").read_text())
    assert described["lora_alpha"] / described["r"] == pytest.approx(32 / 2**0.5)
    assert not described["use_rslora"]
    assert str(target) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "words", "where"),
    [
        (0, ["--adapter", "peft"], "--adapter"),
        (1, ["--adapter", "peft", "--dtype", "fp8"], "--dtype"),
        (1, ["--adapter", "peft-3d", "--pad"], "--pad"),
        (1, ["--adapter", "peft", "--text-only"], "--text-only"),
        (1, ["--adapter", "peft", "--shard-gb", "5"], "--shard-gb"),
    ],
)
def test_what_is_refused(runs, tmp_path, run, words, where):
    with pytest.raises(UserError) as caught:
        prepare(Parser("export", ""), [str(runs[run]), str(tmp_path / "out"), *words])
    assert caught.value.where == where
    assert caught.value.allowed


def test_one_pair_for_all_experts_needs_a_base_with_experts_in_one_parameter(runs, tmp_path):
    with pytest.raises(UserError) as caught:
        prepare(Parser("export", ""), [str(runs[1]), str(tmp_path / "out"), "--adapter", "peft-3d"])()
    error = caught.value
    assert (error.where, error.value, error.allowed) == ("--adapter", "peft-3d", ("merged", "peft"))
    assert not (tmp_path / "out").exists()


def test_the_hint_names_the_base_where_it_is_now(runs, tmp_path, capsys):
    moved = tmp_path / "runs"
    shutil.copytree(runs[1], moved / "adapters")
    shutil.copytree(runs[1].parent / "base", moved / "base")
    config = moved / "adapters" / "config.yaml"
    old = str(runs[1].parent)
    config.write_text(config.read_text().replace(old, str(moved)))
    away = runs[1].parent / "away"
    (runs[1].parent / "base").rename(away)
    try:
        prepare(Parser("export", ""), [str(moved / "adapters"), str(tmp_path / "out"), "--adapter", "peft"])()
    finally:
        away.rename(runs[1].parent / "base")
    printed = capsys.readouterr().out
    assert str(moved / "base") in printed
    assert old + "/base" not in printed
    described = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(moved / "base")


def test_adapters_alone_from_python(runs, tmp_path):
    done = api.export(runs[1], tmp_path / "out", dtype="bf16", adapter="peft")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert (done.step, done.dtypes) == (1, "BF16")
    assert done.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    merged = api.export(runs[1], tmp_path / "merged", adapter="merged")
    assert merged.nbytes == api.export(runs[1], tmp_path / "same").nbytes > done.nbytes
    for run, how, where in (
        (runs[0], {"adapter": "merged"}, "--adapter"),
        (runs[1], {"adapter": "other"}, "--adapter"),
        (runs[1], {"adapter": "peft", "pad": True}, "--pad"),
        (runs[1], {"adapter": "peft", "dtype": "fp9"}, "--dtype"),
    ):
        with pytest.raises(UserError) as caught:
            api.export(run, tmp_path / "refused", **how)
        assert (caught.value.where, bool(caught.value.allowed)) == (where, True)
        assert not (tmp_path / "refused").exists()
