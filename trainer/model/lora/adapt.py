"""Add adapters to a model, give them their initial values, and name the parameters that train."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parallel.sharding.local import local_part, local_region
from trainer.config.keys import LoraConfig
from trainer.model.decoder import Decoder
from trainer.model.lora.experts import AdaptedExperts
from trainer.model.lora.linear import AdaptedLinear, Adapter


def adapt(model: Decoder, cfg: LoraConfig, dtype: torch.dtype | None = None) -> Decoder:
    """Freeze every parameter of a plain model on the meta device and add the adapters of `cfg`, in place.

    dtype: in which the frozen matrices that compute in it are stored, of attention, experts and embedding; None for
    that of the parameters. Norms, routers, LM head and towers keep theirs. With target "none" nothing changes.
    """
    if cfg.target == "none":
        return model
    model.requires_grad_(False)
    if dtype is not None:
        _store(model, dtype)
    options: Any = {"rank": cfg.rank, "scale": cfg.scale, "dropout": cfg.dropout}
    for block in model.blocks:
        attention, experts, ops = block.attention, block.moe.experts, model.ops
        if cfg.target != "experts":
            width = attention.heads * attention.head_dim
            kv = attention.kv_heads * attention.head_dim
            attention.into = AdaptedLinear(
                attention.into, attention.qkv.shape[1], {"q": width, "k": kv, "v": kv}, **options
            )
            attention.out_of = AdaptedLinear(attention.out_of, width, {"o": attention.out.shape[0]}, **options)
        if cfg.target != "attention":
            number, _, inner, hidden = experts.w13.shape
            experts.backend = AdaptedExperts(number, hidden, inner, rank=cfg.rank, scale=cfg.scale, ops=ops)
    return model


def _store(model: Decoder, dtype: torch.dtype) -> None:
    def narrow(module: nn.Module, *names: str) -> None:
        for name in names:
            setattr(module, name, nn.Parameter(getattr(module, name).to(dtype), requires_grad=False))

    if model.embed is not None:
        narrow(model, "embed")
    for block in model.blocks:
        narrow(block.attention, "qkv", "out")
        narrow(block.moe.experts, "w13", "w2")


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of all adapters, by their names in the model."""
    found: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, Adapter | AdaptedExperts):
            found |= {f"{prefix}.{name}": weight for name, weight in module.named_parameters(recurse=False)}
    return found


def is_b(name: str) -> bool:
    """True for a parameter of an adapter that is a B, which starts at zero."""
    return name.rpartition(".")[2].startswith("b")


def rates(model: nn.Module, cfg: LoraConfig) -> dict[str, float]:
    """Adapter's parameter -> its learning rate as a multiple of `optim.lr` (LoRA+, Hayou et al. 2024)."""
    return {name: cfg.plus_ratio if is_b(name) else 1.0 for name in adapters(model)}


@torch.no_grad()
def init_adapters(model: nn.Module, seed: int) -> None:
    """A uniform in +-1/sqrt(inputs), B zero, as PEFT's default; in place, independent of device and layout."""
    for name, weight in adapters(model).items():
        part, where = local_part(weight), local_region(weight)
        if is_b(name):
            part.zero_()
        elif weight.ndim == 3:
            for number, expert in enumerate(range(where[0].start, where[0].stop)):
                part[number].copy_(_uniform(weight.shape[1:], seed, f"{name}.{expert}")[where[1:]])
        else:
            part.copy_(_uniform(weight.shape, seed, name)[where])


def _uniform(shape: Sequence[int], seed: int, name: str) -> Tensor:
    """[r, inputs]: uniform in +-1/sqrt(inputs), drawn on the CPU in fp32; keyed by (seed, name)."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little") >> 1)
    return (torch.rand(tuple(shape), generator=generator) * 2 - 1) * shape[-1] ** -0.5
