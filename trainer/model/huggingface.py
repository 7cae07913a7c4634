"""Reads the text model of a Hugging Face directory (Qwen3-MoE, Intern-S1, Intern-S1-Pro layouts) into a `Decoder`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model.decoder import Block, Decoder

# A text tensor's name may stand behind either of the first two prefixes (both spellings are in use) or the plain one.
TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight")
FREQUENCIES_KEY = "num_inv_freq"
# What this model is; a config.json that asks for something else describes another function of the same weights.
ONLY = {
    "tie_word_embeddings": False,
    "attention_bias": False,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "use_sliding_window": False,
}


class CheckpointError(ValueError):
    """A Hugging Face directory that cannot be read as a text model; the message names the file, key or tensor."""


def model_config_from_huggingface(config: dict[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a parsed config.json, of a text model or of a multimodal one with a `text_config`.

    Reads `num_experts` or `num_local_experts`, `rope_theta` at the top or in `rope_parameters`. Raises CheckpointError
    for a key that is missing or that asks for something this model does not have.
    """
    text = config.get("text_config", config)
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}

    def read(*names: str, default: Any = None) -> Any:
        for name in names:
            if text.get(name) is not None:
                return text[name]
        if default is None:
            raise CheckpointError(f"config.json: no {' or '.join(names)} for the text model")
        return default

    fope = "fope_init_factor" in scaling
    theta = text.get("rope_theta") or scaling.get("rope_theta")
    if theta is None:
        raise CheckpointError("config.json: no rope_theta, neither in the text model nor in its rope_parameters")
    for key, wanted in ONLY.items():
        if text.get(key, wanted) != wanted:
            raise CheckpointError(f"config.json: {key}={text[key]} is not supported; only {key}={wanted} is")
    if text.get("mlp_only_layers") or text.get("decoder_sparse_step", 1) != 1:
        raise CheckpointError(
            "config.json: dense layers are not supported; need mlp_only_layers=[], decoder_sparse_step=1"
        )
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))  # "type" in older files
    if not fope and rope_type != "default":
        raise CheckpointError(f"config.json: rope_type={rope_type} is not supported; only default is")
    cfg = ModelConfig(
        vocab_size=read("vocab_size"),
        hidden_size=read("hidden_size"),
        num_layers=read("num_hidden_layers"),
        num_heads=read("num_attention_heads"),
        num_kv_heads=read("num_key_value_heads"),
        head_dim=read("head_dim", default=read("hidden_size") // read("num_attention_heads")),
        num_experts=read("num_experts", "num_local_experts"),
        experts_per_token=read("num_experts_per_tok"),
        router_groups=read("router_n_groups", default=1),
        expert_width=read("moe_intermediate_size"),
        positions="fope" if fope else "rope",
        rope_theta=float(theta),
        max_position=read("max_position_embeddings"),
        fope_gain=float(scaling.get("fope_init_factor", 0.5)),
        norm_eps=float(read("rms_norm_eps")),
        init_std=float(read("initializer_range", default=0.02)),
        balance_coef=float(text.get("router_aux_loss_coef", 1e-3)),
    )
    if fope and scaling.get(FREQUENCIES_KEY) not in (None, cfg.fope_frequencies()):
        raise CheckpointError(
            f"config.json: {FREQUENCIES_KEY}={scaling[FREQUENCIES_KEY]}, but rope_theta and max_position_embeddings "
            f"keep {cfg.fope_frequencies()} frequencies; only null or that number is supported"
        )
    return cfg


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


class _Shards:
    """The tensors of all safetensors files of a directory by name, opened lazily."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        index = directory / "model.safetensors.index.json"
        if index.exists():
            names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        else:
            names = sorted(path.name for path in directory.glob("*.safetensors") if path.name.startswith("model"))
        if not names:
            raise CheckpointError(f"{directory}: no model.safetensors and no model.safetensors.index.json")
        self._file_of: dict[str, Any] = {}
        for name in names:
            try:
                handle = stack.enter_context(safe_open(directory / name, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{directory / name}: {error}") from error
            self._file_of |= dict.fromkeys(handle.keys(), handle)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def take(self, *candidates: str) -> Tensor:
        """The tensor that stands behind the first of `candidates` that exists."""
        for name in candidates:
            if name in self._file_of:
                return self._file_of[name].get_tensor(name)
        raise CheckpointError(f"the checkpoint has no tensor {candidates[0]}")


def from_huggingface(directory: str | Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The plain text model with the weights of a Hugging Face directory, on the CPU.

    Args:
        directory: holds config.json and safetensors files; towers for other modalities are passed over.
        dtype: of the parameters and of the computation (FoPE's matrices stay fp32, or fp64 when dtype is).
    Returns: a `Decoder` whose parameters are all read, none left at random.
    Raises: CheckpointError naming the key, file or tensor that is missing or does not fit.
    """
    directory = Path(directory)
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{directory}: no config.json; give a Hugging Face model directory")
    cfg = model_config_from_huggingface(_read_json(directory / "config.json"))
    with torch.device("meta"):
        model = Decoder(cfg)
    model = model.to(dtype).to_empty(device="cpu")
    model.rotary.to(torch.promote_types(dtype, torch.float32))
    with ExitStack() as stack, torch.no_grad():
        shards = _Shards(directory, stack)
        for name, target, read in _plan(model, cfg, shards):
            value = read()
            if value.dtype.itemsize < 2:
                raise CheckpointError(
                    f"{name}: {value.dtype} weights mean nothing without their scales; need 16 bits or more"
                )
            if value.shape != target.shape:
                raise CheckpointError(
                    f"{name}: the checkpoint has shape {list(value.shape)}, need {list(target.shape)}"
                )
            target.copy_(value)
    return model


def _plan(model: Decoder, cfg: ModelConfig, shards: _Shards) -> Iterator[tuple[str, Tensor, Callable[[], Tensor]]]:
    """(name, part of a parameter, how to read it) for every tensor of the text model."""
    prefix = next((p for p in TEXT_PREFIXES if f"{p}embed_tokens.weight" in shards), TEXT_PREFIXES[0])

    def plain(name: str, target: Tensor) -> tuple[str, Tensor, Callable[[], Tensor]]:
        return prefix + name, target, lambda: shards.take(prefix + name)

    yield plain("embed_tokens.weight", model.embed)
    yield plain("norm.weight", model.norm)
    yield HEAD_NAMES[0], model.lm_head, lambda: shards.take(*HEAD_NAMES)
    if cfg.positions == "fope":
        yield plain("rotary_emb.cos_coef", model.rotary.cos_coef)
        yield plain("rotary_emb.sin_coef", model.rotary.sin_coef)
    for number, block in enumerate(model.layers):
        assert isinstance(block, Block)
        at = f"layers.{number}."
        attention, moe = block.attention, block.moe
        yield plain(at + "input_layernorm.weight", block.attention_norm)
        yield plain(at + "post_attention_layernorm.weight", block.moe_norm)
        rows = [heads * cfg.head_dim for heads in (cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads)]
        for letter, part in zip("qkv", attention.qkv.split(rows), strict=True):
            yield plain(f"{at}self_attn.{letter}_proj.weight", part)
        yield plain(at + "self_attn.o_proj.weight", attention.out)
        yield plain(at + "self_attn.q_norm.weight", attention.q_norm)
        yield plain(at + "self_attn.k_norm.weight", attention.k_norm)
        yield plain(at + "mlp.gate.weight", moe.router.weight)
        experts = moe.experts
        fused = f"{at}mlp.experts.gate_up_proj"
        if prefix + fused in shards:  # the serving engines' layout: [E, H, 2I] and [E, I, H]
            yield plain(fused, experts.w13.flatten(1, 2).transpose(1, 2))
            yield plain(f"{at}mlp.experts.down_proj", experts.w2.transpose(1, 2))
            continue
        for expert in range(cfg.num_experts):
            gate, up = experts.w13[expert]
            parts = {"gate": gate, "up": up, "down": experts.w2[expert]}
            for kind, part in parts.items():
                yield plain(f"{at}mlp.experts.{expert}.{kind}_proj.weight", part)
