"""config.json -> `MultimodalConfig`. No torch here.

Published code reads some values from the file and has others fixed; a value that the towers here do not have is
refused, because the same weights would be another function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isqrt
from typing import Any

from trainer.config.model import ModelConfig, MultimodalConfig, VisionConfig
from trainer.weights.hf_config import model_config_from_huggingface
from trainer.weights.hf_files import CONFIG, HuggingFaceError
from trainer.weights.section import Section, object_under

VISION = "interns1_pro_vision"


def multimodal_config_from_huggingface(config: dict[str, Any]) -> MultimodalConfig:
    """The text model and the towers of a parsed config.json.

    Raises HuggingFaceError as `model_config_from_huggingface`, for a directory without a tower, for a tower of another
    kind, and for a value that it does not have.
    """
    text = model_config_from_huggingface(config)
    vision = object_under(config, "vision_config") or {}
    if vision.get("model_type") != VISION:
        found = json.dumps(vision.get("model_type")) if vision else "no vision_config"
        raise HuggingFaceError(
            f"{CONFIG}: {found} as the vision tower; a model_type of {VISION} is supported, and `from_huggingface` "
            "reads the text model alone",
            where="vision_config.model_type",
            value=vision.get("model_type"),
            allowed=VISION,
        )
    return MultimodalConfig(
        text=text,
        vision=_vision(Section(vision, "for the vision tower"), text),
        image_token=Section(config, "for images").size("image_token_id"),
    )


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
    if cfg.out_width != text.hidden_size:
        raise v.refused("out_hidden_size", f"the text model's {text.hidden_size} (hidden_size)")
    return cfg


def _require(section: Section, values: Mapping[str, Any]) -> None:
    """Raises HuggingFaceError for a key of `values` that is there with another value."""
    for key, value in values.items():
        if section.values.get(key) not in (None, value):
            raise section.refused(key, json.dumps(value))
