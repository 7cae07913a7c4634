"""A text model without weights, which an engine is sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder
from trainer.model.exact.switch import make_exact, store_for_few_rows
from trainer.model.experts.choose import choose_backend
from trainer.precision import DTYPES
from trainer.weights.hf_config import is_qwen3_moe
from trainer.weights.map import MULTIMODAL, PLAIN, Piece, full_name, text_pieces

SERVED = ("fp32", "bf16", "fp8_reference")  # of precision.experts, in exact arithmetic


@dataclass(frozen=True)
class Blank:
    """linears, experts: as `precision`'s keys. Its weights have the names of `trainer.rl.servers.remote.published`."""

    model: ModelConfig
    linears: str
    experts: str

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(text_pieces(self.model))

    def stored_name(self, piece: Piece) -> str:
        return full_name(PLAIN if is_qwen3_moe(self.model) else MULTIMODAL, piece)

    def load(self, device: torch.device) -> Decoder:
        """The model in exact arithmetic, without gradients, and with any weights. As in a run, matrices that compute in
        16 bits are rounded to them, and experts in FP8 quantise the bf16 rounding of theirs."""
        dtype, cfg = DTYPES[self.linears], replace(self.model, vision=None, signals=None)
        backend = choose_backend(self.experts, cfg.expert_backend, rounding=torch.bfloat16)
        with torch.device("meta"):
            model = Decoder(cfg, dtype, make_backend=backend)
        model.requires_grad_(False).to_empty(device=device)
        for name, weight in model.named_parameters():
            experts = ".moe.experts." in name and self.experts != "fp8_reference"
            if name.startswith("layers.") and (experts or ".attention." in name):
                weight.data = weight.data.to(dtype)
        return store_for_few_rows(make_exact(model))
