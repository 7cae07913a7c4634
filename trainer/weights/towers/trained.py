"""The towers that a model trains: their tensors in a checkpoint, and their description in a config.json. No torch here,
but for `trained_pieces`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.config.model import InternViTConfig, ModelConfig
from trainer.storage.boxes import StoredTensor
from trainer.weights.beside.config_keys import qwen3_moe_keys
from trainer.weights.hf_config import is_qwen3_moe
from trainer.weights.map import Piece
from trainer.weights.towers.config import SIGNAL_TOWER, VISION_TOWERS, multimodal_config_from_huggingface
from trainer.weights.towers.map import tower_pieces
from trainer.weights.towers.names import PATCH_ENCODER, tower_of


def trains(model: ModelConfig, part: str | None) -> bool:
    """Return True for a part of a checkpoint, as `tower_of` returns it, that is a tower of `model`."""
    return (part in ("vision", "projector") and model.vision is not None) or (
        part == "time series" and model.signals is not None
    )


def trained_kinds(model: ModelConfig, towers: Mapping[str, StoredTensor]) -> dict[str, str]:
    """`Piece.kind` of tensors of trained towers -> the dtype that they are stored in, F32 where it is not one. towers:
    the tensors of these, by name."""
    found: dict[str, str] = {}
    for name, tensor in towers.items():
        if trains(model, tower_of(name)):
            kind = re.sub(r"\d+", "*", name)
            found[kind] = tensor.dtype if found.get(kind, tensor.dtype) == tensor.dtype else "F32"
    return found


def trained_pieces(model: ModelConfig) -> list[Piece]:
    """Every part of the parameters of the towers of `model`."""
    if model.vision is None and model.signals is None:
        return []
    import torch

    from trainer.model.multimodal import make_towers

    with torch.device("meta"):
        towers = make_towers(model)
    shapes = {
        f"{name}.{parameter}": tuple(tensor.shape)
        for name, tower in (("vision", towers["vision"]), ("signals", towers["signals"]))
        if tower is not None
        for parameter, tensor in tower.state_dict().items()
    }
    return list(tower_pieces(shapes))


def other_towers(model: ModelConfig, config: dict[str, Any]) -> list[str]:
    """A clause for every tower of `model` that a config.json does not have, or has with other sizes. Raises
    HuggingFaceError where that cannot be read."""
    if model.vision is None and model.signals is None:
        return []
    theirs = multimodal_config_from_huggingface(config)
    found = []
    for name, token in (("vision", "image_token"), ("signals", "signal_token")):
        ours, other = getattr(model, name), getattr(theirs, name)
        if ours is None:
            continue
        if other is None:
            found.append(f"model.{name} is not null in this run, but the checkpoint has no such tower")
            continue
        pairs = {f"{name}.{key}": (value, getattr(other, key, None)) for key, value in vars(ours).items()}
        pairs[token] = getattr(model, token), getattr(theirs, token)
        found += [
            f"model.{key} is {a} in this run but {b} in the checkpoint" for key, (a, b) in pairs.items() if a != b
        ]
    return found


def describe(model: ModelConfig) -> dict[str, Any]:
    """The config.json of a model with towers from random weights, whose text section names no size yet."""
    text = {"model_type": "qwen3_moe" if is_qwen3_moe(model) else "interns1_pro_text", **qwen3_moe_keys(model)}
    old = isinstance(model.vision, InternViTConfig)
    config: dict[str, Any] = {
        "architectures": ["InternS1ForConditionalGeneration" if old else "InternS1ProForConditionalGeneration"],
        "model_type": "interns1" if old else "interns1_pro",
        "tie_word_embeddings": False,
        "text_config": text,
    }
    v, s = model.vision, model.signals
    if isinstance(v, InternViTConfig):
        config |= {
            "image_token_id": model.image_token,
            "image_seq_length": v.tokens,
            "downsample_ratio": 1 / v.merge,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "vision_config": {
                "model_type": VISION_TOWERS[0], "hidden_size": v.width, "num_hidden_layers": v.num_layers,
                "num_attention_heads": v.num_heads, "intermediate_size": v.mlp_width, "num_channels": v.channels,
                "image_size": [v.tile_size] * 2, "patch_size": [v.patch_size] * 2, "layer_norm_eps": v.norm_eps,
                "hidden_act": "gelu", "norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False,
                "use_absolute_position_embeddings": True, "use_mask_token": False, "use_mean_pooling": True,
            },
        }  # fmt: skip
    elif v is not None:
        config |= {
            "image_token_id": model.image_token,
            "vision_config": {
                "model_type": VISION_TOWERS[1], "hidden_size": v.width, "depth": v.num_layers,
                "num_heads": v.num_heads, "intermediate_size": v.mlp_width, "in_channels": v.channels,
                "temporal_patch_size": v.frames, "patch_size": v.patch_size, "spatial_merge_size": v.merge,
                "num_position_embeddings": v.position_side**2, "out_hidden_size": v.out_width,
                "hidden_act": "gelu_pytorch_tanh", "deepstack_visual_indexes": [],
            },
        }  # fmt: skip
    if s is not None:
        config |= {
            "ts_token_id": model.signal_token,
            "ts_config": {
                "model_type": SIGNAL_TOWER, "num_mel_bins": s.bins, "d_model": s.width,
                "encoder_layers": s.num_layers, "encoder_attention_heads": s.num_heads,
                "encoder_ffn_dim": s.mlp_width, "max_source_positions": s.positions,
                "ts_adapt_in_dim": 2 * s.patch_width, "ts_adapt_out_dim": s.adapt_width,
                "ts_hidden_dim": s.adapt_width, "out_hidden_size": s.out_width, "activation_function": "gelu",
                "scale_embedding": False,
                **{key: getattr(s, key) for key, value in PATCH_ENCODER.items() if getattr(s, key) != value},
            },
        }  # fmt: skip
    return config
