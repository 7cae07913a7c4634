"""The programs that can read a directory, and the keys of config.json that they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, Qwen3MoeConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from launch.cli import main
from tests.trainer.tiny_run import MODEL
from trainer.config.model import ModelConfig
from trainer.weights.beside.readers import ASKED, MULTIMODAL, QWEN3, SERVING, readers
from trainer.weights.hf_config import huggingface_config, model_config_from_huggingface

ALL = {"transformers", *SERVING, "Megatron-Bridge", *ASKED}
APART = ["model.layers.0.mlp.experts.0.gate_proj.weight"]


def plain(**sizes: Any) -> ModelConfig:
    return ModelConfig(**{**MODEL, "router_groups": 1, "positions": "rope", **sizes})


def that_read(config: dict[str, Any], names: list[str] = APART, files: tuple[str, ...] = ()) -> set[str]:
    found = readers(config, names, files)
    assert {reader.program for reader in found} in (ALL, set())
    return {reader.program for reader in found if reader.reads}


def test_a_config_has_every_key_that_transformers_own_class_writes(tmp_path):
    Qwen3MoeConfig().save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text())
    ours = huggingface_config(plain(), None, dtype="bfloat16")
    assert theirs.keys() - ours.keys() == set()
    (tmp_path / "config.json").write_text(json.dumps(ours))
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is Qwen3MoeConfig
    assert (read.num_experts, read.intermediate_size, read.norm_topk_prob) == (8, 4 * 16, True)
    assert (ours["num_experts"], ours["max_window_layers"], ours["sliding_window"]) == (8, 2, None)
    assert model_config_from_huggingface(ours) == plain()


def test_a_config_that_lacks_keys_gets_them(tmp_path):
    """One that an earlier export wrote, and one of transformers 5, which has no num_experts."""
    whole = huggingface_config(plain(), None, dtype="bfloat16")
    for left_out in (("intermediate_size", "max_window_layers", "use_cache"), ("num_experts", "sliding_window")):
        source = {key: value for key, value in whole.items() if key not in left_out}
        assert huggingface_config(plain(), source, dtype="bfloat16") == whole
    kept = {**whole, "intermediate_size": 6144, "max_window_layers": 1}
    assert huggingface_config(plain(), kept, dtype="bfloat16") == kept


def test_a_qwen3_moe_is_read_by_all():
    config = huggingface_config(plain(), None, dtype="bfloat16")
    assert that_read(config) == ALL
    assert that_read({**config, "intermediate_size": None}) == ALL - {"mlx-lm", "mistral.rs"}
    assert that_read({key: config[key] for key in config if key != "max_window_layers"}) == ALL - {"mistral.rs"}
    assert that_read({**config, "architectures": []}) == ALL - {*SERVING}
    assert that_read({**config, "quantization_config": {}}) == ALL
    fp8 = {**config, "hidden_size": 256, "moe_intermediate_size": 128, "quantization_config": {"quant_method": "fp8"}}
    assert that_read(fp8) == ALL - {*ASKED}
    assert that_read({**fp8, "moe_intermediate_size": 192}) == ALL - {*ASKED, "transformers"}
    assert that_read({**fp8, "hidden_size": 192}) == ALL - {*ASKED, "transformers"}
    stacks = ["model.layers.0.mlp.experts.gate_up_proj"]
    assert that_read(config, stacks) == set()
    assert [reader.program for reader in readers(config, stacks, (), upright=True) if reader.reads] == ["transformers"]
    assert that_read(config, ["model.language_model.layers.0.mlp.experts.0.gate_proj.weight"]) == set()
    assert that_read({"model_type": "llama"}) == set()


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_transformers_itself_has_no_class_of_the_multimodal_models(kind):
    assert kind not in CONFIG_MAPPING
    assert "qwen3_moe" in CONFIG_MAPPING
    code = {"AutoConfig": f"configuration_{kind}.Config", "AutoModelForCausalLM": f"modeling_{kind}.Model"}
    files = (f"configuration_{kind}.py", f"modeling_{kind}.py")
    config = {
        "model_type": kind, "architectures": [MULTIMODAL[kind]], "text_config": {}, "vision_config": {"depth": 1},
        "auto_map": code,
    }  # fmt: skip
    assert that_read(config, files=files) == {"transformers", *SERVING}
    assert that_read(config, files=files[:1]) == {*SERVING}
    assert that_read(config) == set()
    assert that_read({**config, "vision_config": None}, files=files) == {"transformers"}
    assert that_read({**config, "architectures": [QWEN3]}, files=files) == {"transformers"}
    assert that_read({**config, "auto_map": {"AutoConfig": "someone/else--configuration.Config"}}, files=files) == set()


def test_inspect_prints_a_line_for_each(reference, capsys):
    assert main(["inspect", str(reference / "tiny" / "interns1_pro")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("read by ")]
    shown = [line.split()[0] for line in lines[first:] if line.startswith(" ")]
    assert {"vLLM:", "SGLang:", "LMDeploy:", "mlx-lm:"} <= set(shown)
    assert "trust_remote_code" in lines[first]
    assert "interns1_pro" in lines[first]
    assert any(line == "tokenizer   none" for line in lines)


def test_the_documentation_names_every_program():
    text = (Path(__file__).parents[4] / "docs" / "checkpoints.md").read_text()
    assert [program for program in sorted(ALL) if program not in text] == []
