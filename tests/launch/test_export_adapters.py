"""`octavo export --adapter`: adapters alone, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.commands.export import prepare
from parallel.errors import UserError
from tests.trainer.tiny_run import tiny_config
from trainer.config.command_line import Parser
from trainer.config.errors import CommandError
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
    ],
)
def test_what_is_refused(runs, tmp_path, run, words, where):
    with pytest.raises(CommandError) as caught:
        prepare(Parser("export", ""), [str(runs[run]), str(tmp_path / "out"), *words])
    (fault,) = caught.value.faults
    assert fault.where == where
    assert fault.allowed


def test_one_pair_for_all_experts_needs_a_base_with_experts_in_one_parameter(runs, tmp_path):
    with pytest.raises(UserError) as caught:
        prepare(Parser("export", ""), [str(runs[1]), str(tmp_path / "out"), "--adapter", "peft-3d"])()
    error = caught.value
    assert (error.where, error.value, error.allowed) == ("--adapter", "peft-3d", ("merged", "peft"))
    assert not (tmp_path / "out").exists()
