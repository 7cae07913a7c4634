"""Names and shapes against the table of the published checkpoints."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.errors import UserError
from trainer.config.model import ModelConfig
from trainer.model.multimodal import Multimodal
from trainer.weights.hf_config import huggingface_config, model_config_from_huggingface
from trainer.weights.map import MULTIMODAL, full_name, stack_shapes, stacked_layers, text_pieces
from trainer.weights.towers.config import multimodal_config_from_huggingface
from trainer.weights.towers.map import tower_pieces
from trainer.weights.towers.names import tower_of, tower_shapes

FEW = {"L": 2, "E": 16, "vL": 2, "tL": 2}  # of what is repeated


def published(table: dict[str, Any], sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Every name of the table with its shape."""
    found = {}
    for pattern, shape in (table["tensors"] | table.get("tensors_time_series", {})).items():
        loops = re.findall(r"\{(\w)\}", pattern)
        counts = [range(sizes[{"l": "L", "e": "E", "v": "vL", "t": "tL"}[letter]]) for letter in loops]
        for numbers in itertools.product(*counts):
            name = pattern.format(**dict(zip(loops, numbers, strict=True)))
            found[name] = tuple(eval(str(size), {}, sizes) for size in shape)
    return found


def text_config(s: dict[str, int], scaling: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "model_type": "interns1_pro_text", "norm_topk_prob": True,
        "vocab_size": s["V"], "hidden_size": s["H"], "num_hidden_layers": s["L"], "num_attention_heads": s["nH"],
        "num_key_value_heads": s["nKV"], "head_dim": s["dh"], "num_experts": s["E"], "num_experts_per_tok": s["K"],
        "moe_intermediate_size": s["I"], "router_n_groups": s.get("G", 1), "rms_norm_eps": 1e-6, "rope_theta": 5e6,
        "max_position_embeddings": 262144, "rope_scaling": scaling,
    }  # fmt: skip


def interns1(s: dict[str, int]) -> dict[str, Any]:
    side = s["vP"] * round(s["vN"] ** 0.5)
    vision = {
        "model_type": "interns1_vision", "hidden_size": s["vH"], "num_hidden_layers": s["vL"],
        "num_attention_heads": 25, "intermediate_size": s["vI"], "patch_size": [s["vP"], s["vP"]],
        "image_size": [side, side], "num_channels": s["C"],
        "norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False,
    }  # fmt: skip
    return {"text_config": text_config(s, None), "vision_config": vision, "downsample_ratio": 0.5}


def interns1_pro(s: dict[str, int]) -> dict[str, Any]:
    vision = {
        "model_type": "interns1_pro_vision", "hidden_size": s["vH"], "depth": s["vL"], "num_heads": 16,
        "intermediate_size": s["vI"], "patch_size": s["vP"],
        "temporal_patch_size": s["vT"], "in_channels": s["C"], "spatial_merge_size": 2,
        "num_position_embeddings": s["vN"], "out_hidden_size": s["vO"],
    }  # fmt: skip
    signals = {
        "model_type": "interns1_pro_time_series", "d_model": s["tD"], "encoder_ffn_dim": s["tI"],
        "encoder_layers": s["tL"], "encoder_attention_heads": 8, "num_mel_bins": s["nMel"],
        "max_source_positions": s["tPos"], "ts_adapt_in_dim": s["tIn"], "ts_adapt_out_dim": s["tOut"],
        "out_hidden_size": s["vO"],
    }  # fmt: skip
    text = text_config(s, {"rope_type": "default", "fope_init_factor": 0.5})
    return {"text_config": text, "vision_config": vision, "ts_config": signals}


@pytest.mark.parametrize(("name", "config_of"), [("interns1", interns1), ("interns1_pro", interns1_pro)])
def test_every_name_and_shape_of_the_published_table(reference: Path, name, config_of):
    table = json.loads((reference / "interns1_keys.json").read_text())[name]
    sizes = table["symbols"] | {key: value for key, value in FEW.items() if key in table["symbols"]}
    config, expected = config_of(sizes), published(table, sizes)
    model = model_config_from_huggingface(config)
    text = {full_name(MULTIMODAL, piece): piece.shape for piece in text_pieces(model)}
    towers = tower_shapes(config)
    assert all(tower_of(name) for name in towers)
    assert not any(tower_of(name) for name in text)
    assert text | towers == expected


@pytest.mark.parametrize(("name", "config_of"), [("interns1", interns1), ("interns1_pro", interns1_pro)])
def test_the_modules_have_the_tensors_of_the_published_table(reference: Path, name, config_of):
    """At the published sizes of the towers, on the meta device."""
    sizes = json.loads((reference / "interns1_keys.json").read_text())[name]["symbols"] | {"L": 1, "E": 8}
    config = config_of(sizes)
    with torch.device("meta"):
        model = Multimodal(multimodal_config_from_huggingface(config | {"image_token_id": 151655}))
    found = tower_pieces({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    assert {piece.name: piece.shape for piece in found} == tower_shapes(config)
    if name == "interns1_pro":
        assert sum(tensor.numel() for tensor in model.signals.state_dict().values()) == 148_533_200  # 148.5 M


@pytest.mark.parametrize("key", ["depth", "out_hidden_size"])
def test_a_tower_that_is_not_described_in_full(reference: Path, key):
    sizes = json.loads((reference / "interns1_keys.json").read_text())["interns1_pro"]["symbols"]
    config = interns1_pro(sizes)
    del config["vision_config"][key]
    with pytest.raises(UserError) as refused:
        tower_shapes(config)
    assert (refused.value.where, refused.value.value, refused.value.allowed) == (key, None, (key,))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("positions", ["rope", "fope"])
def test_a_configuration_is_read_as_it_was_written(groups, positions):
    model = ModelConfig(
        vocab_size=61, hidden_size=24, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=8, num_experts=12,
        experts_per_token=4, router_groups=groups, expert_width=20, positions=positions, rope_theta=100.0,
        max_position=64, fope_gain=0.25, fope_pad_sin=0.0 if positions == "fope" else 1.0, norm_eps=1e-5,
        init_std=0.1, balance_coef=0.02,
    )  # fmt: skip
    config = huggingface_config(model, None, dtype="bfloat16")
    again = model_config_from_huggingface(json.loads(json.dumps(config)))
    expected = model if positions == "fope" else ModelConfig(**{**vars(model), "fope_gain": 0.5})
    assert again == expected
    assert ("text_config" in config) == ((groups, positions) != (1, "rope"))
    # Over a source that says the same in other words, and over one of another model.
    for source in (
        config,
        huggingface_config(ModelConfig(**{**vars(model), "num_experts": 24}), None, dtype="float32"),
    ):
        for section in (source, source.get("text_config", {})):
            if "num_experts" in section:
                section["num_local_experts"] = section.pop("num_experts")
        changed = huggingface_config(model, source, dtype="bfloat16")
        assert model_config_from_huggingface(changed) == expected
        assert changed["dtype"] == "bfloat16"
        text = changed.get("text_config", changed)
        assert text["num_local_experts"] == text["num_experts"] == model.num_experts  # other programs ask for either


@pytest.mark.parametrize("sizes", [(8, 4, 6), (8, 4, 4), (8, 8, 4), (1, 4, 4), (2, 8, 4), (1, 1, 1)])
@pytest.mark.parametrize("stack", ["fused", "upright"])
@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_the_layout_of_stacks_shows_in_their_shapes(sizes, stack, prefix):
    """Also where 2I = H or I = H, so that one of the two shapes is the same in both layouts."""
    experts, hidden, width = sizes
    model = ModelConfig(
        vocab_size=61, hidden_size=hidden, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=8,
        num_experts=experts, experts_per_token=1, router_groups=1, expert_width=width, positions="rope",
    )  # fmt: skip
    gate_up, down = stack_shapes(model, stack)
    at = f"{prefix}layers.1.mlp.experts."
    shapes = {
        f"{at}gate_up_proj": gate_up,
        f"{at}down_proj": down,
        f"{prefix}layers.2.mlp.experts.0.up_proj.weight": (),
    }
    assert stacked_layers(shapes, prefix, model) == {1: stack}
    pieces = {
        piece.name: piece.shape for piece in text_pieces(model, {1: stack}) if "layers.1.mlp.experts" in piece.name
    }
    assert pieces == {"layers.1.mlp.experts.gate_up_proj": gate_up, "layers.1.mlp.experts.down_proj": down}
