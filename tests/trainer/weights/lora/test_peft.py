"""Adapters and merged weights as other programs read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.tiny_run import tiny_config
from tests.trainer.weights.code_folder import code_folder
from trainer.config.keys import LoraConfig
from trainer.run.process import train
from trainer.weights.export import export
from trainer.weights.hf_read import from_huggingface
from trainer.weights.lora.peft import export_adapters
from trainer.weights.opened import open_checkpoint

QWEN3 = {"router_groups": 1, "positions": "rope", "init_std": 0.2, "balance_coef": 0.0}
IDS = torch.arange(40).view(2, 20) % 61


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny Qwen3-MoE with random weights."""
    folder = tmp_path_factory.mktemp("base")
    assert train(tiny_config(folder / "run", steps=1, model=QWEN3)) == 0
    export(folder / "run", folder / "base", dtype="fp32")
    return folder / "base"


SLOW = [pytest.param(target, marks=pytest.mark.slow) for target in ("attention", "experts", "all")]


@pytest.fixture(scope="module", params=[*SLOW, "rslora"])
def run(request, base, tmp_path_factory) -> Path:
    """A run whose Bs are far from zero."""
    path = tmp_path_factory.mktemp(request.param) / "run"
    rslora = request.param == "rslora"
    cfg = tiny_config(path, steps=3, lr=0.05, warmup_steps=0, weight_decay=0.0, model=QWEN3)
    cfg.lora = LoraConfig(target="all" if rslora else request.param, rank=3, alpha=5.0, rslora=rslora)
    cfg.checkpoint.init_from = str(base)
    assert train(cfg) == 0
    return path


def merged_logits(run: Path, target: Path) -> Tensor:
    """By our own model, from the merged export."""
    export(run, target, dtype="fp32")
    model = from_huggingface(target)
    return model.logits(model(IDS).hidden)


@pytest.mark.parametrize("form", ["peft", "peft-3d"])
def test_peft_has_the_logits_before_and_after_a_merge(run, base, form, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export_adapters(open_checkpoint(run), tmp_path / "adapters", form)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        expected, start = merged_logits(run, tmp_path / "merged"), plain(IDS).logits
        theirs = PeftModel.from_pretrained(plain, tmp_path / "adapters")
        apart = theirs(IDS).logits
        together = theirs.merge_and_unload()(IDS).logits
    scale = expected.abs().max()
    assert (expected - start).abs().max() > 0.05 * scale  # the adapters matter
    for found in (apart, together):
        assert (found - expected).abs().max() < 1e-5 * scale


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model of Intern-S1-Pro's layout, and a run that trained adapters beside it."""
    folder = tmp_path_factory.mktemp("grouped")
    model = {"init_std": 0.2, "balance_coef": 0.0}
    assert train(tiny_config(folder / "first", steps=1, model=model)) == 0
    export(folder / "first", folder / "base", dtype="fp32")
    cfg = tiny_config(folder / "run", steps=3, lr=0.05, warmup_steps=0, weight_decay=0.0, model=model)
    cfg.lora, cfg.checkpoint.init_from = LoraConfig(target="all", rank=3, alpha=5.0), str(folder / "base")
    assert train(cfg) == 0
    return folder / "base", folder / "run"


@pytest.fixture
def code(tmp_path):
    with code_folder(tmp_path / "modules"):
        yield


def test_peft_puts_them_on_the_code_that_a_grouped_export_carries(grouped, tmp_path, code):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, run = grouped
    export_adapters(open_checkpoint(run), tmp_path / "adapters", "peft")
    stored = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        expected, start = merged_logits(run, tmp_path / "merged"), plain(IDS).logits
        theirs = PeftModel.from_pretrained(plain, tmp_path / "adapters")
        loaded = {name for name, _ in theirs.named_parameters() if ".lora_" in name}
        apart = theirs(IDS).logits
        together = theirs.merge_and_unload()(IDS).logits
    assert {name.replace(".default", "") for name in loaded} == stored.keys()  # PEFT drops others with a warning
    scale = expected.abs().max()
    assert (expected - start).abs().max() > 0.05 * scale
    for found in (apart, together):
        assert (found - expected).abs().max() < 1e-5 * scale
