"""Tensors of the towers of Intern-S1 and Intern-S1-Pro, by name and shape, from their config.json. No torch here.

Nothing here is trained by a text run: such tensors are carried from directory to directory as they are. What is written
down is enough to say whether all of them came along.

Legend: W width of a tower · F inner width of its MLPs · P patch size · N position embeddings · H text hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.weights.section import Section, object_under

Shapes = dict[str, tuple[int, ...]]
DESCRIBED = "in the description of a tower"
# Part of a checkpoint -> the start of its tensors' names. Published files say `model.`; older spellings leave it out.
TOWERS = {
    "vision": re.compile(r"(model\.)?(vision_tower|visual)\."),
    "projector": re.compile(r"(model\.)?multi_modal_projector\."),
    "time series": re.compile(r"(model\.)?time_series\."),
}
# Intern-S1-Pro's own time-series sizes and names were never published in full: others than these may belong there.
LOOSE = "time series"
# Sizes that published code has fixed; a key of these names is ours.
PATCH_ENCODER = {"patch_width": 128, "patch_heads": 8, "patch_mlp_width": 2048, "patch_positions": 20_000}
OPTIONAL = re.compile(r"model\.vision_tower\.(embeddings\.mask_token|layernorm\.(weight|bias))")


def tower_of(name: str) -> str | None:
    """The part, a key of TOWERS, that a tensor belongs to."""
    return next((part for part, pattern in TOWERS.items() if pattern.match(name)), None)


def tower_shapes(config: Mapping[str, Any]) -> Shapes:
    """The tensors that the towers of a config.json have; nothing for towers of another kind than the two models'.

    Raises HuggingFaceError where the description of a known tower lacks a size or has another thing in its place.
    """
    shapes: Shapes = {}
    vision, signals = (object_under(config, key) or {} for key in ("vision_config", "ts_config"))
    match vision.get("model_type"):
        case "interns1_vision":
            text = Section(object_under(config, "text_config") or {}, "for the text model")
            shapes |= _vision_tower(Section(vision, DESCRIBED), config, text.size("hidden_size"))
        case "interns1_pro_vision" | "interns1_1_vision":
            shapes |= _visual(Section(vision, DESCRIBED))
    if signals.get("model_type") in ("interns1_pro_time_series", "interns1_1_time_series"):
        shapes |= _time_series(Section(signals, DESCRIBED))
    return shapes


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    return shapes | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, width: int, bias: bool = True) -> Shapes:
    return {f"{name}.{kind}": (width,) for kind in ("weight", "bias")[: 1 + bias]}


def _vision_tower(v: Section, config: Mapping[str, Any], H: int) -> Shapes:
    """InternViT and the projector of Intern-S1."""
    W, F, (height, width) = v.size("hidden_size"), v.size("intermediate_size"), v.pair("patch_size")
    rows, columns = v.pair("image_size")
    root = "model.vision_tower."
    shapes: Shapes = {
        f"{root}embeddings.cls_token": (1, 1, W),
        f"{root}embeddings.patch_embeddings.projection.weight": (W, v.size("num_channels"), height, width),
        f"{root}embeddings.patch_embeddings.projection.bias": (W,),
    }
    if v.values.get("use_absolute_position_embeddings", True):
        shapes[f"{root}embeddings.position_embeddings"] = (1, (rows // height) * (columns // width) + 1, W)
    shifted = v.values.get("norm_type") == "layer_norm"
    for number in range(v.size("num_hidden_layers")):
        at = f"{root}encoder.layer.{number}."
        for norm in ("layernorm_before", "layernorm_after"):
            shapes |= _norm(at + norm, W, bias=shifted)
        shapes |= {at + "lambda_1": (W,), at + "lambda_2": (W,)}
        for letter in "qkv":
            shapes |= _linear(f"{at}attention.{letter}_proj", W, W, bias=bool(v.values.get("attention_bias")))
        if v.values.get("use_qk_norm"):
            shapes |= _norm(at + "attention.q_norm", W, bias=False) | _norm(at + "attention.k_norm", W, bias=False)
        shapes |= _linear(at + "attention.projection_layer", W, W)
        shapes |= _linear(at + "mlp.fc1", F, W) | _linear(at + "mlp.fc2", W, F)
    merged = W * round(1 / Section(config, DESCRIBED).number("downsample_ratio", least=1e-3)) ** 2
    shapes |= _norm("model.multi_modal_projector.layer_norm", merged)
    shapes |= _linear("model.multi_modal_projector.linear_1", H, merged)
    return shapes | _linear("model.multi_modal_projector.linear_2", H, H)


def _visual(v: Section) -> Shapes:
    """The native-resolution tower of Intern-S1-Pro, its merger included."""
    W, F, P = v.size("hidden_size"), v.size("intermediate_size"), v.size("patch_size")
    shapes: Shapes = {
        "model.visual.patch_embed.proj.weight": (W, v.size("in_channels"), v.size("temporal_patch_size"), P, P),
        "model.visual.patch_embed.proj.bias": (W,),
        "model.visual.pos_embed.weight": (v.size("num_position_embeddings"), W),
    }
    for number in range(v.size("depth")):
        at = f"model.visual.blocks.{number}."
        shapes |= _norm(at + "norm1", W) | _norm(at + "norm2", W)
        shapes |= _linear(at + "attn.qkv", 3 * W, W) | _linear(at + "attn.proj", W, W)
        shapes |= _linear(at + "mlp.linear_fc1", F, W) | _linear(at + "mlp.linear_fc2", W, F)
    merged = W * v.size("spatial_merge_size") ** 2
    shapes |= _norm("model.visual.merger.norm", W) | _linear("model.visual.merger.linear_fc1", merged, merged)
    return shapes | _linear("model.visual.merger.linear_fc2", v.size("out_hidden_size"), merged)


def _time_series(t: Section) -> Shapes:
    """The tower for signals of Intern-S1-Pro, as a serving engine reads it."""
    patch = {key: t.size(key, default=value) for key, value in PATCH_ENCODER.items()}
    inner = patch["patch_mlp_width"]
    W, F, mels, conv = t.size("d_model"), t.size("encoder_ffn_dim"), t.size("num_mel_bins"), patch["patch_width"]
    into, out, H = t.size("ts_adapt_in_dim"), t.size("ts_adapt_out_dim"), t.size("out_hidden_size")
    at = "model.time_series.encoder_embed."
    first = at + "transformer_encoder.layers.0."
    shapes: Shapes = {
        at + "conv.weight": (conv, 1, 5),
        at + "conv.bias": (conv,),
        at + "pos_encoder.pe": (patch["patch_positions"], 1, conv),
        first + "self_attn.in_proj_weight": (3 * conv, conv),
        first + "self_attn.in_proj_bias": (3 * conv,),
    }
    shapes |= _linear(first + "self_attn.out_proj", conv, conv)
    shapes |= _linear(first + "linear1", inner, conv) | _linear(first + "linear2", conv, inner)
    shapes |= _norm(first + "norm1", conv) | _norm(first + "norm2", conv)
    at = "model.time_series.encoder."
    shapes |= _linear(at + "adapt_in", mels, into) | _linear(at + "adapt_out", out, W) | _norm(at + "layer_norm", W)
    shapes |= {at + "conv1.weight": (W, mels, 3), at + "conv2.weight": (W, W, 3)}
    shapes |= {at + "conv1.bias": (W,), at + "conv2.bias": (W,)}
    shapes[at + "embed_positions.weight"] = (t.size("max_source_positions"), W)
    for number in range(t.size("encoder_layers")):
        layer = f"{at}layers.{number}."
        for letter in "qkv":
            shapes |= _linear(f"{layer}self_attn.{letter}_proj", W, W, bias=letter != "k")
        shapes |= _linear(layer + "self_attn.out_proj", W, W)
        shapes |= _norm(layer + "self_attn_layer_norm", W) | _norm(layer + "final_layer_norm", W)
        shapes |= _linear(layer + "fc1", F, W) | _linear(layer + "fc2", W, F)
    at = "model.time_series.projector."
    shapes |= _norm(at + "layer_norm", out)
    return shapes | _linear(at + "linear_1", H, out) | _linear(at + "linear_2", H, H)
