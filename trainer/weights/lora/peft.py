"""The adapters of a checkpoint as a directory that PEFT and serving engines read.

Legend: E experts · I expert width · H hidden size · r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallel.errors import UserError
from trainer.config.keys import LoraConfig
from trainer.config.run_files import SOURCE
from trainer.storage.atomic import TargetExistsError, atomic_directory
from trainer.storage.boxes import full_box
from trainer.weights.hf_files import CONFIG, HuggingFaceError, read_json
from trainer.weights.hf_read import DTYPES
from trainer.weights.hf_survey import usual_prefix
from trainer.weights.hf_write import Bundle, OutputTensor, Shard, already_exists, make_room, write_json, write_shard
from trainer.weights.lora.base import base_path
from trainer.weights.lora.forms import Form, check_adapter
from trainer.weights.opened import OpenedCheckpoint

# adapters of a layer -> names and tensors of PEFT
Write = Callable[[Mapping[str, Tensor]], Iterator[tuple[str, Tensor]]]
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = ("gate_proj", "up_proj", "down_proj")
FUSED_IN = "qwen3_moe"  # the model_type whose experts PEFT finds as the parameters `FUSED`
FUSED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


class Written(NamedTuple):
    """nbytes: of the tensors. base: the directory of the weights that the adapters belong to, where it is now."""

    nbytes: int
    base: Path


def export_adapters(opened: OpenedCheckpoint, target: Path, form: Form, dtype: str = "F32") -> Written:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    form: "peft" has an A and a B of two dimensions for every matrix of every expert; "peft-3d" one pair for all experts
    of a layer, for models whose experts are one parameter there, as those of Qwen3-MoE. dtype: of the tensors, F32 as
    they were trained or BF16. A layer is in memory at a time.
    Raises: UserError for a run without adapters and for a form that does not fit its base, CheckpointError for a
        damaged checkpoint and for a base that has changed or is gone, HuggingFaceError for the target.
    """
    lora = opened.lora
    opened.refuse_inside(target)
    check_adapter(form, lora.target, opened.run_directory)
    config = read_json(opened.run_directory / SOURCE / CONFIG)
    if form == "peft-3d" and lora.target != "attention" and config.get("model_type") != FUSED_IN:
        text = f"--adapter peft-3d is for a base whose experts are one parameter in other programs ({FUSED_IN})"
        text = f"{text}; in that of {opened.run_directory} they are one by one: use merged or peft"
        raise UserError(text, where="--adapter", value=form, allowed=("merged", "peft"))
    base = base_path(opened.path, opened.base, opened.init_from)
    shard = Shard(WEIGHTS_NAME, tuple(_bundles(opened, form, dtype, f"base_model.model.{usual_prefix(config)}")))
    try:
        make_room(target, shard.size)
        opened.compare_hashes()
        opened.stored.compare_one()
        with atomic_directory(target) as temporary:
            write_shard(temporary / WEIGHTS_NAME, shard, lambda nbytes: None)
            write_json(temporary / CONFIG_NAME, describe(lora, form, str(base)))
    except TargetExistsError as error:
        raise already_exists(error.path) from None
    except OSError as error:
        raise HuggingFaceError(
            f"{target} cannot be written: {error.strerror or error}",
            where=str(target),
            value=error.strerror,
            allowed="a path that can be written, with enough space",
        ) from error
    return Written(shard.nbytes, base)


def describe(lora: LoraConfig, form: Form, base: str) -> dict[str, Any]:
    """The content of adapter_config.json.

    rsLoRA is written as an alpha that has the same factor at alpha / r: PEFT doubles the rank where it fuses gate and
    up, and keeps only alpha / r while doing so. Dropout is for training alone, and fused experts refuse it.
    """
    modules = [*(ATTENTION if lora.target != "experts" else ()), *(EXPERTS if form == "peft" else ())]
    alpha = lora.scale * lora.rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
        "target_modules": [name for name in modules if lora.target != "attention" or name in ATTENTION] or None,
        "target_parameters": list(FUSED) if form == "peft-3d" and lora.target != "attention" else None,
    }


def _bundles(opened: OpenedCheckpoint, form: Form, dtype: str, prefix: str) -> Iterator[Bundle]:
    """The adapters of attention, and those of the experts, layer by layer."""
    lora = opened.lora

    def bundle(at: str, parts: Mapping[str, str], write: Write) -> Bundle:
        def make() -> Iterator[Tensor]:
            read = {
                part: opened.stored.read(f"model.{name}", full_box(opened.adapters[name])).to(DTYPES[dtype])
                for part, name in parts.items()
            }
            yield from (tensor.contiguous() for _, tensor in write(read))

        shapes = {part: torch.empty(opened.adapters[name], device="meta") for part, name in parts.items()}
        named = [(f"{prefix}{at}.{name}", tuple(tensor.shape)) for name, tensor in write(shapes)]
        return Bundle(tuple(OutputTensor(name, dtype, shape) for name, shape in named), make)

    for number in range(opened.model.num_layers):
        at = f"layers.{number}."
        if lora.target != "experts":
            places = {"q": "into", "k": "into", "v": "into", "o": "out_of"}
            parts = {
                f"{letter}.{kind}": f"{at}attention.{place}.adapters.{letter}.{kind}"
                for letter, place in places.items()
                for kind in "ab"
            }
            yield bundle(f"{at}self_attn", parts, _of_attention)
        if lora.target != "attention":
            parts = {name: f"{at}moe.experts.backend.{name}" for name in ("a13", "b13", "a2", "b2")}
            yield bundle(f"{at}mlp.experts", parts, _per_expert if form == "peft" else _fused)


def _of_attention(of: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, weight in of.items():
        letter, _, kind = name.partition(".")
        yield f"{letter}_proj.lora_{kind.upper()}.weight", weight


def _per_expert(of: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Gate and up share A here, and have a copy each there."""
    for e in range(len(of["a2"])):
        gate, up = of["b13"][e].chunk(2, dim=-1)
        for name, a, b in (("gate", of["a13"][e], gate), ("up", of["a13"][e], up), ("down", of["a2"][e], of["b2"][e])):
            yield f"{e}.{name}_proj.lora_A.weight", a
            yield f"{e}.{name}_proj.lora_B.weight", b.T


def _fused(of: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A [E r, inputs], row e r + j of expert e; B [outputs, r E], column j E + e of expert e. PEFT wraps the module
    once for each parameter, gate_up_proj inside, which the names alone show."""
    for name, a, b in (("base_layer.", of["a13"], of["b13"]), ("", of["a2"], of["b2"])):
        yield f"{name}lora_A.weight", a.flatten(0, 1)
        yield f"{name}lora_B.weight", b.permute(2, 1, 0).flatten(1)
