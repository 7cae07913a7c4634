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
from trainer.weights.beside.readers import ASKED, MULTIMODAL, OCTAVO, QWEN3, SERVING, readers
from trainer.weights.hf_config import huggingface_config, model_config_from_huggingface

ALL = {OCTAVO, "transformers", *SERVING, "Megatron-Bridge", *ASKED}
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
    stacks = ["model.layers.0.mlp.experts.gate_up_proj"]
    assert that_read(config, stacks) == {OCTAVO}
    assert [reader.program for reader in readers(config, stacks, (), upright=True) if reader.reads] == [
        OCTAVO, "transformers",
    ]  # fmt: skip
    assert that_read(config, ["model.language_model.layers.0.mlp.experts.0.gate_proj.weight"]) == {OCTAVO}
    assert that_read({"model_type": "llama"}) == set()


def test_widths_of_fp8_that_programs_misread_or_refuse():
    """transformers divides a width above 128 evenly by its scales; what joins matrices needs whole blocks of each."""
    wide = {"hidden_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    fp8 = {
        **huggingface_config(plain(), None, dtype="bfloat16"), **wide, "head_dim": 32,
        "quantization_config": {"quant_method": "fp8"},
    }  # fmt: skip
    assert that_read(fp8) == ALL - {*ASKED}
    assert that_read({**fp8, "moe_intermediate_size": 192}) == ALL - {*ASKED, "transformers", *SERVING}
    assert that_read({**fp8, "moe_intermediate_size": 64}) == ALL - {*ASKED, *SERVING}
    assert that_read({**fp8, "hidden_size": 192}) == ALL - {*ASKED, "transformers"}
    assert that_read({**fp8, "num_attention_heads": 6}) == ALL - {*ASKED, "transformers", *SERVING}
    (said,) = [r.line for r in readers({**fp8, "hidden_size": 192}, APART, ()) if r.program == "transformers"]
    assert "5.23" in said
    assert "hidden_size" in said


@pytest.mark.parametrize("kind", MULTIMODAL)
def test_transformers_itself_has_no_class_of_the_multimodal_models(kind):
    assert kind not in CONFIG_MAPPING
    assert "qwen3_moe" in CONFIG_MAPPING
    named = MULTIMODAL[kind]
    code = {"AutoConfig": f"configuration_{kind}.Config", "AutoModelForCausalLM": f"modeling_{kind}.{named}"}
    files = (f"configuration_{kind}.py", f"modeling_{kind}.py", "processor_config.json")
    config: dict[str, Any] = {
        "model_type": kind, "architectures": [named], "vision_config": {"depth": 1}, "auto_map": code,
        "text_config": {"rope_scaling": {"fope_init_factor": 0.5}},
    }  # fmt: skip
    all_read = {OCTAVO, "transformers", *SERVING}
    assert that_read(config, files=files) == all_read
    assert that_read(config, files=files[:2]) == {OCTAVO, "transformers", "vLLM"}  # without a processor of images
    assert that_read(config, files=(files[0], files[2])) == {OCTAVO, *SERVING}
    assert that_read(config) == {OCTAVO}
    assert that_read({**config, "vision_config": None}, files=files) == {OCTAVO, "transformers"}
    assert that_read({**config, "architectures": [QWEN3]}, files=files) == {OCTAVO, "transformers"}
    other = {"auto_map": {"AutoConfig": "someone/else--configuration.Config"}}
    assert that_read({**config, **other}, files=files) == {OCTAVO}
    foreign = {"auto_map": {**code, "AutoModelForCausalLM": f"modeling_{kind}.Model"}}
    assert that_read({**config, **foreign}, files=files) == all_read - {"LMDeploy"}
    signals = {"num_mel_bins": 80, "d_model": 32}
    assert that_read({**config, "ts_config": signals}, files=files) == all_read
    for changed in ({"num_mel_bins": 16}, {"patch_width": 64}):
        assert that_read({**config, "ts_config": {**signals, **changed}}, files=files) == all_read - {"LMDeploy"}
    rope = {"text_config": {"rope_theta": 1e4}}
    assert that_read({**config, **rope}, files=files) == (all_read if kind == "interns1" else all_read - {"vLLM"})


def test_code_of_intern_s1_does_not_read_router_groups():
    """As `octavo upcycle` writes Intern-S1 with its towers and its own code."""
    code = {"AutoConfig": "c.Config", "AutoModelForCausalLM": "m.InternS1ForConditionalGeneration"}
    config = {
        "model_type": "interns1", "architectures": [MULTIMODAL["interns1"]], "vision_config": {"depth": 1},
        "auto_map": code, "text_config": {"model_type": "qwen3_moe"},
    }  # fmt: skip
    assert that_read(config, files=("c.py", "m.py", "processor_config.json")) == {OCTAVO, "transformers", *SERVING}
    config["text_config"] = {"model_type": "interns1_pro_text", "router_n_groups": 8}
    assert that_read(config, files=("c.py", "m.py")) == {OCTAVO}


def test_lines_say_what_was_tested():
    config = huggingface_config(plain(), None, dtype="bfloat16")
    lines = {reader.program: reader.line for reader in readers(config, APART, ())}
    tested = {program for program, line in lines.items() if "tested with" in line}
    assert tested == {"transformers", "vLLM", "mlx-lm", "mistral.rs"}
    assert all("not tested" in lines[program] for program in ("SGLang", "Megatron-Bridge"))
    sizes = dict.fromkeys(("hidden_size", "head_dim", "moe_intermediate_size"), 128)
    quantised = {**config, **sizes, "quantization_config": {"quant_method": "fp8"}}
    assert "not tested" in {reader.program: reader.line for reader in readers(quantised, APART, ())}["vLLM"]


def test_inspect_prints_a_line_for_each(reference, capsys):
    assert main(["inspect", str(reference / "tiny" / "interns1_pro")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("read by ")]
    shown = [line.split()[0] for line in lines[first:] if line.startswith(" ")]
    assert {"vLLM:", "SGLang:", "LMDeploy:", "mlx-lm:"} <= set(shown)
    assert "Octavo: yes" in lines[first]
    (line,) = [line for line in lines[first:] if "transformers: no" in line]
    assert "trust_remote_code" in line
    assert "interns1_pro" in line
    assert any(line == "tokenizer   none" for line in lines)


def test_the_documentation_names_every_program():
    text = (Path(__file__).parents[4] / "docs" / "exports.md").read_text()
    assert [program for program in sorted(ALL) if program not in text] == []
