"""config.json <-> `ModelConfig`. No torch here."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from trainer.config.model import ModelConfig
from trainer.weights.beside.config_keys import FIRST_TRANSFORMERS, qwen3_moe_keys
from trainer.weights.config_json.text import open_text, require_this_function, text_section
from trainer.weights.hf_files import HuggingFaceError

FREQUENCIES_KEY = "num_inv_freq"
# Keys of `ModelConfig` without which the same weights are another function.
FUNCTION = (
    "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "num_experts",
    "experts_per_token", "router_groups", "expert_width", "positions", "rope_theta", "fope_pad_sin", "norm_eps",
)  # fmt: skip
TOWER_SECTIONS = ("vision_config", "ts_config")
BLOCK = [128, 128]  # rows and columns of an FP8 weight that share a scale


def model_config_from_huggingface(config: dict[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a parsed config.json, of a text model or of a multimodal one with a `text_config`.

    Reads `num_experts` or `num_local_experts`, `rope_theta` at the top or in `rope_parameters`; absent keys have the
    values of transformers' own configuration of that model type. Raises HuggingFaceError for a key that is missing, of
    another kind, or that asks for something this model does not have.
    """
    read, rope = open_text(config)
    fope = "fope_init_factor" in rope.values
    theta = read if rope.values.get("rope_theta") is None else rope
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
    cfg = ModelConfig(
        vocab_size=read.size("vocab_size"),
        hidden_size=hidden,
        num_layers=read.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=read.size("num_key_value_heads"),
        head_dim=read.size("head_dim", default=hidden // heads),
        num_experts=read.size("num_experts", "num_local_experts"),
        experts_per_token=read.size("num_experts_per_tok"),
        router_groups=read.size("router_n_groups", default=1),
        expert_width=read.size("moe_intermediate_size"),
        positions="fope" if fope else "rope",
        rope_theta=theta.number("rope_theta", least=1.0),
        max_position=read.size("max_position_embeddings"),
        fope_gain=rope.number("fope_init_factor", default=0.5),
        fope_pad_sin=rope.number("fope_pad_sin", default=1.0),
        norm_eps=read.number("rms_norm_eps"),
        init_std=read.number("initializer_range", default=0.02),
        balance_coef=read.number("router_aux_loss_coef", default=1e-3),
    )
    if cfg.head_dim % 2:
        raise read.refused("head_dim", "an even number")
    for part, whole, divides in (
        ("num_key_value_heads", "num_attention_heads", cfg.num_heads % cfg.num_kv_heads == 0),
        ("router_n_groups", "num_experts", cfg.num_experts % cfg.router_groups == 0),
        ("router_n_groups", "num_experts_per_tok", cfg.experts_per_token % cfg.router_groups == 0),
    ):
        if not divides:
            raise read.refused(part, f"a divisor of {whole}")
    if cfg.experts_per_token > cfg.num_experts:
        raise read.refused("num_experts_per_tok", f"{cfg.num_experts} (num_experts) or less")
    require_this_function(config, read, rope, cfg.head_dim, cfg.num_layers)
    kept = rope.values.get(FREQUENCIES_KEY)
    if fope and kept not in (None, cfg.fope_frequencies()):
        raise HuggingFaceError(
            f"config.json: {FREQUENCIES_KEY}={kept}, but rope_theta and max_position_embeddings keep "
            f"{cfg.fope_frequencies()} frequencies; only null or that number is supported",
            where=FREQUENCIES_KEY,
            value=kept,
            allowed=(None, cfg.fope_frequencies()),
        )
    return cfg


def other_function(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """A clause for every key of `ours` that makes a different function of the weights of `theirs`."""
    pairs = {key: (getattr(ours, key), getattr(theirs, key)) for key in FUNCTION}
    if ours.positions == theirs.positions == "fope" and ours.fope_frequencies() != theirs.fope_frequencies():
        pairs["max_position"] = (ours.max_position, theirs.max_position)
    return [f"model.{key} is {a} in this run but {b} in the checkpoint" for key, (a, b) in pairs.items() if a != b]


def huggingface_config(
    model: ModelConfig,
    source: Mapping[str, Any] | None,
    *,
    dtype: str,
    unconverted: Collection[str] | None = None,
    scale_fmt: str | None = "ue8m0",
) -> dict[str, Any]:
    """The config.json of `model`: `source` where it says the same, brought in line where it does not.

    source: of the directory that the model started from; None writes a Qwen3-MoE one where the model is of that kind,
    an Intern-S1-Pro one of text alone elsewhere. dtype: "bfloat16" or "float32", of what is not FP8. unconverted: with
    FP8 weights, the modules that are not. scale_fmt: of the scales, where they are all of that kind.
    """
    config: dict[str, Any] = copy.deepcopy(dict(source)) if source is not None else _template(model)
    text = text_section(config)

    def put(section: dict[str, Any], value: Any, *names: str) -> None:
        """Under the names in use, the first one where none is; untouched where it says the same."""
        for name in [name for name in names if section.get(name) is not None] or names[:1]:
            if section.get(name) != value:
                section[name] = value

    put(text, model.vocab_size, "vocab_size")
    put(text, model.hidden_size, "hidden_size")
    put(text, model.num_layers, "num_hidden_layers")
    put(text, model.num_heads, "num_attention_heads")
    put(text, model.num_kv_heads, "num_key_value_heads")
    put(text, model.head_dim, "head_dim")
    put(text, model.num_experts, "num_experts", "num_local_experts")
    put(text, model.experts_per_token, "num_experts_per_tok")
    put(text, model.expert_width, "moe_intermediate_size")
    put(text, model.max_position, "max_position_embeddings")
    put(text, model.norm_eps, "rms_norm_eps")
    put(text, model.balance_coef, "router_aux_loss_coef")
    put(text, model.rope_theta, "rope_theta")
    if model.router_groups > 1 or "router_n_groups" in text:
        put(text, model.router_groups, "router_n_groups")
    for name in ("rope_parameters", "rope_scaling"):
        if text.get(name) and "rope_theta" in text[name]:
            put(text[name], model.rope_theta, "rope_theta")
    if model.positions == "fope":
        key = "rope_scaling" if text.get("rope_scaling") or not text.get("rope_parameters") else "rope_parameters"
        text[key] = text.get(key) or {"rope_type": "default", "fope_sep_head": True, FREQUENCIES_KEY: None}
        put(text[key], model.fope_gain, "fope_init_factor")
        if model.fope_pad_sin != 1:  # a key of ours: published code knows no other padding than 1
            put(text[key], model.fope_pad_sin, "fope_pad_sin")
    if not any(key in config for key in TOWER_SECTIONS):  # a text model alone, which other programs read by these keys
        for name, value in qwen3_moe_keys(model).items():
            text.setdefault(name, value)
    for section in (config, text):
        section.pop("quantization_config", None)
        for name in ("dtype", "torch_dtype"):
            if section.get(name) is not None:
                section[name] = dtype
    if config.get("dtype") is None and config.get("torch_dtype") is None:
        # Under the names of transformers 5 and 4, and for the text model alone: LMDeploy looks there.
        for section in (config, text):
            section |= {"dtype": dtype, "torch_dtype": dtype}
    if unconverted is not None:
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            **({"scale_fmt": scale_fmt} if scale_fmt is not None else {}),
            "weight_block_size": BLOCK,
            "modules_to_not_convert": sorted(unconverted),
        }
    return config


def _template(model: ModelConfig) -> dict[str, Any]:
    text = qwen3_moe_keys(model)
    if is_qwen3_moe(model):
        rope = {"rope_type": "default", "rope_theta": model.rope_theta}  # where newer versions of transformers look
        head = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
        return {**head, **text, "rope_parameters": rope, "transformers_version": FIRST_TRANSFORMERS}
    return {
        "architectures": ["InternS1ProForConditionalGeneration"],
        "model_type": "interns1_pro",
        "tie_word_embeddings": False,
        "text_config": {"model_type": "interns1_pro_text", **text},
    }


def is_qwen3_moe(model: ModelConfig) -> bool:
    """Return True if transformers' Qwen3-MoE is this model."""
    return model.router_groups == 1 and model.positions == "rope"
