"""Models with adapters that are not at their start, and the same models with the products written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.trainer.model.tiny import model_config, randomise_norms
from trainer.config.keys import LoraConfig
from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder
from trainer.model.lora.adapt import adapt, adapters, init_adapters, is_b


def build_adapted(
    lora: LoraConfig, cfg: ModelConfig | None = None, dtype: torch.dtype = torch.float64, **changed: Any
) -> Decoder:
    """A plain model whose adapters' Bs are drawn too: at zero they would hide every fault of A."""
    with torch.device("meta"):
        model = adapt(Decoder(cfg or model_config(**changed)), lora).to(dtype)
    model.to_empty(device="cpu")
    model.init_weights(seed=5)
    randomise_norms(model)
    start(model)
    return model


@torch.no_grad()
def start(model: torch.nn.Module) -> None:
    init_adapters(model, 7)
    for name, weight in adapters(model).items():
        if is_b(name):
            generator = torch.Generator().manual_seed(len(name) + weight.numel())
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def written_out(model: Decoder, scale: float) -> tuple[Decoder, dict[str, Tensor]]:
    """The plain decoder with W + scale * B A as its matrices, through autograd, and the leaves by the adapters' names:
    independent of the code that computes with adapters."""
    plain = Decoder(model.cfg).to(next(model.parameters()).dtype)
    base = {name: weight for name, weight in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(base)
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in adapters(model).items()}
    for number, block in enumerate(plain.blocks):
        at = f"layers.{number}."
        for module, name, parts in ((block.attention, "qkv", "qkv"), (block.attention, "out", "o")):
            names = [f"{at}attention.{'into' if name == 'qkv' else 'out_of'}.adapters.{part}" for part in parts]
            if f"{names[0]}.a" in leaves:
                delta = torch.cat([leaves[f"{part}.b"] @ leaves[f"{part}.a"] for part in names])
                replace_weight(module, name, scale * delta)
        experts, prefix = block.moe.experts, f"{at}moe.experts.backend"
        if f"{prefix}.a13" in leaves:
            a13, b13, a2, b2 = (leaves[f"{prefix}.{name}"] for name in ("a13", "b13", "a2", "b2"))
            replace_weight(experts, "w13", scale * torch.einsum("ern,erh->enh", b13, a13).view_as(experts.w13))
            replace_weight(experts, "w2", scale * torch.einsum("erh,eri->ehi", b2, a2))
    return plain, leaves


def replace_weight(module: torch.nn.Module, name: str, delta: Tensor) -> None:
    weight = getattr(module, name).detach()
    delattr(module, name)
    setattr(module, name, weight + delta)
