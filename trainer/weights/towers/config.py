"""config.json -> the towers of a `ModelConfig`. No torch here.

Published code reads some values from the file and has others fixed; a value that the towers here do not have is
refused, because the same weights would be another function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from trainer.config.model import InternViTConfig, ModelConfig, TimeSeriesConfig, VisionConfig
from trainer.weights.hf_config import model_config_from_huggingface
from trainer.weights.hf_files import CONFIG, HuggingFaceError
from trainer.weights.section import Section, object_under
from trainer.weights.towers.names import PATCH_ENCODER

SIGNAL_TOKEN = 151685  # <TS_CONTEXT> in the vocabulary of Intern-S1-Pro, where config.json does not name it
VISION_TOWERS = ("interns1_vision", "interns1_pro_vision")
SIGNAL_TOWER = "interns1_pro_time_series"


def multimodal_config_from_huggingface(config: dict[str, Any]) -> ModelConfig:
    """The text model and the towers of a parsed config.json.

    Raises HuggingFaceError as `model_config_from_huggingface`, for a directory without a vision tower, for one of
    another kind, and for a value that it does not have.
    """
    text = model_config_from_huggingface(config)
    signals = _time_series(config, text)
    cfg = replace(
        text,
        vision=_vision_tower(config, text),
        image_token=_placeholder(config, "image_token_id", text),
        signals=signals,
        signal_token=_placeholder(config, "ts_token_id", text, default=SIGNAL_TOKEN) if signals else None,
    )
    if cfg.image_token == cfg.signal_token:
        raise Section(config, "for signals").refused("ts_token_id", "another token than image_token_id")
    return cfg


def _placeholder(config: Mapping[str, Any], name: str, text: ModelConfig, default: int | None = None) -> int:
    section = Section(config, "as a placeholder")
    token = section.size(name, default=default)
    if token >= text.vocab_size:
        raise section.refused(name, f"a token of the vocabulary, 1 to {text.vocab_size - 1}")
    return token


def _require_text_width(section: Section, width: int, text: ModelConfig) -> None:
    if width != text.hidden_size:
        raise section.refused("out_hidden_size", f"the text model's {text.hidden_size} (hidden_size)")


def _vision_tower(config: Mapping[str, Any], text: ModelConfig) -> VisionConfig | InternViTConfig:
    vision = object_under(config, "vision_config") or {}
    section = Section(vision, "for the vision tower")
    match vision.get("model_type"):
        case "interns1_vision":
            return _intern_vit(section, config, text)
        case "interns1_pro_vision" | "interns1_1_vision":
            return _vision(section, text)
    found = json.dumps(vision.get("model_type")) if vision else "no vision_config"
    kinds = " or ".join(VISION_TOWERS)
    raise HuggingFaceError(
        f"{CONFIG}: {found} as the vision tower; a model_type of {kinds} is supported, and `from_huggingface` reads "
        "the text model alone",
        where="vision_config.model_type",
        value=vision.get("model_type"),
        allowed=VISION_TOWERS,
    )


def _intern_vit(v: Section, config: Mapping[str, Any], text: ModelConfig) -> InternViTConfig:
    around = Section(config, "for images")
    cfg = InternViTConfig(
        width=v.size("hidden_size"),
        num_layers=v.size("num_hidden_layers"),
        num_heads=v.size("num_attention_heads"),
        mlp_width=v.size("intermediate_size"),
        channels=v.size("num_channels"),
        tile_size=_side(v, "image_size"),
        patch_size=_side(v, "patch_size"),
        merge=round(1 / around.number("downsample_ratio", least=1e-3)),
        norm_eps=v.number("layer_norm_eps", default=1e-6),
        out_width=text.hidden_size,
    )
    _require(v, {
        "hidden_act": "gelu", "norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False,
        "use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True,
    })  # fmt: skip
    _require(around, {
        "projector_hidden_act": "gelu", "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
    })  # fmt: skip
    if cfg.width % cfg.num_heads:
        raise v.refused("num_attention_heads", f"a divisor of hidden_size={cfg.width}")
    if cfg.tile_size % cfg.patch_size or cfg.side % cfg.merge:
        raise v.refused("image_size", f"a multiple of patch_size / downsample_ratio = {cfg.patch_size * cfg.merge}")
    if cfg.merge * around.number("downsample_ratio") != 1:
        raise around.refused("downsample_ratio", "one over a whole number")
    return cfg


def _time_series(config: Mapping[str, Any], text: ModelConfig) -> TimeSeriesConfig | None:
    found = object_under(config, "ts_config")
    if not found:
        return None
    t = Section(found, "for the time-series tower")
    if found.get("model_type") not in (SIGNAL_TOWER, "interns1_1_time_series"):
        raise t.refused("model_type", SIGNAL_TOWER)
    cfg = TimeSeriesConfig(
        bins=t.size("num_mel_bins"),
        width=t.size("d_model"),
        num_layers=t.size("encoder_layers"),
        num_heads=t.size("encoder_attention_heads"),
        mlp_width=t.size("encoder_ffn_dim"),
        positions=t.size("max_source_positions"),
        adapt_width=t.size("ts_adapt_out_dim"),
        out_width=t.size("out_hidden_size"),
        # keys of ours, of towers that started from random weights: published code has these fixed
        **{key: t.size(key, default=value) for key, value in PATCH_ENCODER.items()},
    )
    _require(t, {"activation_function": "gelu", "scale_embedding": False, "ts_hidden_dim": cfg.adapt_width})
    if t.size("ts_adapt_in_dim") != 2 * cfg.patch_width:
        raise t.refused("ts_adapt_in_dim", f"{2 * cfg.patch_width}, two patches side by side")
    if cfg.width % cfg.num_heads:
        raise t.refused("encoder_attention_heads", f"a divisor of d_model={cfg.width}")
    _require_text_width(t, cfg.out_width, text)
    return cfg


def _side(section: Section, name: str) -> int:
    height, width = section.pair(name)
    if height != width:
        raise section.refused(name, "a square")
    return height


def _vision(v: Section, text: ModelConfig) -> VisionConfig:
    positions = v.size("num_position_embeddings")
    cfg = VisionConfig(
        width=v.size("hidden_size"),
        num_layers=v.size("depth"),
        num_heads=v.size("num_heads"),
        mlp_width=v.size("intermediate_size"),
        channels=v.size("in_channels"),
        frames=v.size("temporal_patch_size"),
        patch_size=v.size("patch_size"),
        merge=v.size("spatial_merge_size"),
        position_side=isqrt(positions),
        out_width=v.size("out_hidden_size"),
    )
    _require(v, {"hidden_act": "gelu_pytorch_tanh"})
    if v.values.get("deepstack_visual_indexes"):
        raise v.refused("deepstack_visual_indexes", "none: Intern-S1-Pro has no deepstack")
    if cfg.width % (4 * cfg.num_heads):
        raise v.refused("num_heads", f"heads of a multiple of 4 out of hidden_size={cfg.width}")
    if cfg.position_side**2 != positions:
        raise v.refused("num_position_embeddings", "a square number")
    _require_text_width(v, cfg.out_width, text)
    return cfg


def _require(section: Section, values: Mapping[str, Any]) -> None:
    """Raises HuggingFaceError for a key of `values` that is there with another value."""
    for key, value in values.items():
        if section.values.get(key) not in (None, value):
            raise section.refused(key, json.dumps(value))
