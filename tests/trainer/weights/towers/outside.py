"""Directories of Intern-S1 and Intern-S1-Pro as code of others reads them, in fp32.

Intern-S1 is an InternVL around a Qwen3-MoE, which transformers has. Intern-S1-Pro is transformers' Qwen3-VL-MoE with
deepstack off and two parts of its own, written here from their formulas: FoPE, and the router that selects in groups.
With the weights of the reference checkpoint this gives the logits that the published code gave (test_outside.py). The
embeddings of signals are those of a formula in fp64.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.trainer.model.tiny import relative
from tests.trainer.model.towers.signal_formula import signal_formula
from trainer.model.towers.time_series import prepare_signal
from trainer.model.towers.vision import Images
from trainer.weights.towers.read import load_multimodal

BOUND = 1e-5
Recording = tuple[Tensor, float]  # [steps, channels], not normalised, and its rate


def described(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return {name: t.float() for file in directory.glob("model*.safetensors") for name, t in load_file(file).items()}


@torch.no_grad()
def s1_logits(directory: Path, ids: Tensor, tiles: Tensor) -> Tensor:
    """transformers' own reader, of the directory as it is but for the names of its kind: [B, S, vocabulary]."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = described(directory)
    config |= {"model_type": "internvl", "architectures": ["InternVLForConditionalGeneration"]}
    config["vision_config"] |= {"model_type": "internvl_vision"}
    model, report = InternVLForConditionalGeneration.from_pretrained(
        directory,
        config=InternVLConfig(**config, attn_implementation="eager"),
        dtype=torch.float32,
        output_loading_info=True,
    )
    assert not report["missing_keys"]
    logits: Tensor = model(input_ids=ids, pixel_values=tiles).logits
    return logits


@torch.no_grad()
def pro_logits(
    directory: Path, ids: Tensor, pixels: Tensor, grids: Sequence[tuple[int, int]], recordings: Sequence[Recording] = ()
) -> Tensor:
    """[B, S, vocabulary]. recordings: in the order of their placeholders in ids."""
    from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe as published

    config, tensors = described(directory), tensors_of(directory)
    model = published.Qwen3VLMoeForConditionalGeneration(qwen3_vl_moe(config))
    text = config["text_config"]
    tables = {f"{kind}_coef": tensors.pop(f"model.language_model.rotary_emb.{kind}_coef") for kind in ("cos", "sin")}
    model.model.language_model.rotary_emb = Fope(text, **tables)
    for layer in model.model.language_model.layers:
        layer.mlp.gate.forward = GroupedRouter(layer.mlp.gate, text)
    at = "model.time_series."
    of_signals = {n.removeprefix(at): tensors.pop(n).double() for n in list(tensors) if n.startswith(at)}
    model.load_state_dict(stacked_experts(tensors, text["num_hidden_layers"], text["num_experts"]))

    embeds = model.get_input_embeddings()(ids)
    if recordings:
        heads = config["ts_config"]["encoder_attention_heads"]
        found = [signal_formula(of_signals, x.double(), rate, heads=heads, patch_heads=8) for x, rate in recordings]
        embeds[ids == config["ts_token_id"]] = torch.cat(found).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "apply_rotary_pos_emb", apply_fope)
        logits: Tensor = model(
            inputs_embeds=embeds,
            pixel_values=pixels,
            image_grid_thw=torch.tensor([(1, *grid) for grid in grids]),
            position_ids=torch.arange(ids.shape[1]).expand(ids.shape),
        ).logits
    return logits


def qwen3_vl_moe(config: dict[str, Any]) -> Any:
    from transformers import Qwen3VLMoeConfig

    text = {
        key: config["text_config"][key]
        for key in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "moe_intermediate_size", "num_experts", "num_experts_per_tok", "rms_norm_eps", "max_position_embeddings",
        )
    }  # fmt: skip
    vision = config["vision_config"] | {"model_type": "qwen3_vl_moe", "deepstack_visual_indexes": []}
    return Qwen3VLMoeConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=config["image_token_id"],
        video_token_id=text["vocab_size"] - 1,  # of no use here, but looked up
        tie_word_embeddings=False,
        attn_implementation="eager",
    )


def stacked_experts(tensors: dict[str, Tensor], layers: int, experts: int) -> dict[str, Tensor]:
    """The experts as Qwen3-VL-MoE holds them; all other names are its own."""
    found = dict(tensors)
    for layer in range(layers):
        at = f"model.language_model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([found.pop(f"{at}.{e}.{kind}_proj.weight") for e in range(experts)])
            for kind in ("gate", "up", "down")
        )
        found |= {f"{at}.gate_up_proj": torch.cat([gate, up], 1), f"{at}.down_proj": down}
    return found


class Fope(nn.Module):
    """Tables of Fourier position embeddings: cos and sin of the frequencies that a whole turn fits into, mixed by a
    matrix of each key/value head, and 1 for the others."""

    def __init__(self, text: dict[str, Any], cos_coef: Tensor, sin_coef: Tensor) -> None:
        super().__init__()
        self.coefficients = cos_coef, sin_coef
        theta = text.get("rope_theta") or text["rope_parameters"]["rope_theta"]
        frequencies = theta ** -(torch.arange(0, text["head_dim"], 2, dtype=torch.float64) / text["head_dim"])
        self.kept = frequencies[frequencies > 2 * torch.pi / text["max_position_embeddings"]].float()
        self.ones = text["head_dim"] // 2 - len(self.kept)

    def forward(self, _x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[..., B, S] -> cos and sin [B, heads, S, head_dim]."""
        while position_ids.ndim > 2:
            position_ids = position_ids[0]
        angles = position_ids[..., None].float() * self.kept
        cos, sin = (
            F.pad(torch.einsum("bsd,hde->bhse", table, coefficients), (0, self.ones), value=1.0)
            for table, coefficients in zip((angles.cos(), angles.sin()), self.coefficients, strict=True)
        )
        return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


def apply_fope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """q: [B, heads, S, d], whose heads share the tables of their key/value head; k: [B, key/value heads, S, d]."""

    def rotated(x: Tensor) -> Tensor:
        of_heads = (table.repeat_interleave(x.shape[1] // table.shape[1], 1) for table in (cos, sin))
        first, second = x.chunk(2, -1)
        c, s = of_heads
        return x * c + torch.cat([-second, first], -1) * s

    return rotated(q), rotated(k)


class GroupedRouter:
    """The best experts of each group of neighbours, weighted by their softmax over all experts."""

    def __init__(self, gate: nn.Module, text: dict[str, Any]) -> None:
        self.gate, self.groups = gate, text["router_n_groups"]
        self.per_group = text["num_experts_per_tok"] // self.groups

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden @ self.gate.weight.T
        in_groups = logits.softmax(-1).unflatten(-1, (self.groups, -1))
        best, ids = in_groups.topk(self.per_group, -1)
        ids = ids + torch.arange(self.groups)[:, None] * in_groups.shape[-1]
        best, ids = best.flatten(-2), ids.flatten(-2)
        return logits, best / (best.sum(-1, keepdim=True) + 1e-20), ids


def grids_of(stored: dict[str, Tensor]) -> list[tuple[int, int]]:
    return [(rows, columns) for _, rows, columns in stored["image_grid_thw"].tolist()]


@torch.no_grad()
def assert_others_compute_the_same(out: Path, stored: dict[str, Tensor]) -> None:
    """stored: ids and images of the reference checkpoint; signals are added where there is a tower for them."""
    model, ids = load_multimodal(out), stored["input_ids"].clone()
    if model.signals is None:
        expected = s1_logits(out, ids, stored["pixel_values"])
        found = model.logits(model(ids, images=stored["pixel_values"]).hidden)
    else:
        free = (ids[1] != model.cfg.image_token).nonzero().flatten()
        ids[1, free[[3, 4, 6, 7, 8, 11, -2]]] = model.cfg.signal_token
        drawn = torch.randn(157, 3, generator=torch.Generator().manual_seed(5))
        recordings: list[Recording] = [(drawn[:147], 36.0), (drawn[147:], 1.0)]  # 6 tokens and 1
        expected = pro_logits(out, ids, stored["pixel_values"], grids_of(stored), recordings)
        images = Images(stored["pixel_values"], grids_of(stored))
        signals = [prepare_signal(x, rate) for x, rate in recordings]
        found = model.logits(model(ids, images=images, signals=signals).hidden)
    assert relative(found, expected) <= BOUND
