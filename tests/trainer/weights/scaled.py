"""Directories in FP8, and models with adapters whose base is read from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.trainer.model.tiny import build, model_config, next_tokens, random_ids, summed_loss
from tests.trainer.weights.directories import APART, checkpoint
from trainer.config.keys import LoraConfig
from trainer.model.decoder import Decoder
from trainer.model.experts.choose import choose_backend
from trainer.model.frozen.hold import hold_base, place_scales
from trainer.model.lora.adapt import adapt, adapters, init_adapters
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_read import fill
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.scaled import fill_scales

# Blocks of 128 divide the first; every width of the second ends inside a block.
EVEN = {"hidden_size": 256, "expert_width": 128, "head_dim": 64, "num_experts": 4, "num_layers": 1}
UNEVEN = {"hidden_size": 200, "expert_width": 132, "head_dim": 24, "num_experts": 4, "num_layers": 1}


def written(path: Any, sizes: dict[str, int], layout: str = APART, *, powers: bool = True) -> SourceModel:
    """A directory in FP8. powers: scales are powers of two, as Intern-S1-Pro's; otherwise any fp32."""
    made = checkpoint(path, build(model_config(**sizes)), layout=layout)
    made.quantise()
    for name, tensor in made.tensors.items():
        if name.endswith("_scale_inv") and not powers:
            tensor.mul_(1 + torch.rand(tensor.shape, generator=torch.Generator().manual_seed(7)))
    made.write()
    return survey_directory(open_directory(path))


def adapted(
    source: SourceModel, base: str, target: str, *, linears: torch.dtype = torch.float32, experts: str = "fp32"
) -> Decoder:
    """The model of a directory with adapters whose B are not zero."""
    lora = LoraConfig(target=target, rank=4, base=base)
    with torch.device("meta"):
        model = Decoder(source.model, linears, make_backend=choose_backend("fp32", "grouped_mm"))
    adapt(model, lora)
    hold_base(model, lora, experts)
    place_scales(model)
    model.to_empty(device="cpu")
    fill(model, source)
    fill_scales(model, source, source.pieces)
    init_adapters(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapters(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


def stepped(model: Decoder, seed: int = 3) -> dict[str, Tensor]:
    """The loss and the gradients of all adapters. seed: of the tokens."""
    ids = random_ids(model.cfg, 2, 24, seed).to(model.norm.device)
    loss, _ = summed_loss(model, ids, next_tokens(ids))
    loss.backward()
    found = {name: weight.grad for name, weight in adapters(model).items() if weight.grad is not None}
    assert found.keys() == adapters(model).keys()
    assert all(weight.grad is None for name, weight in model.named_parameters() if name not in found)
    return {"loss": loss.detach(), **found}
