"""Hugging Face directories of tiny models with random weights, made in a fraction of a second."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.trainer.tiny_run import MODEL
from tests.trainer.weights.directories import checkpoint
from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder


def directory_of(folder: Path, seed: int) -> tuple[Path, dict[str, Tensor]]:
    """A Hugging Face directory of random weights that bf16 holds, and its tensors."""
    model = Decoder(ModelConfig(**{**MODEL, "max_position": 1000, "init_std": 0.3}), torch.float32)
    model.init_weights(seed)
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(torch.bfloat16).float() if "rotary" not in name else weight.data
    made = checkpoint(folder, model)
    made.write()
    return folder, {name: tensor.detach().clone() for name, tensor in made.tensors.items()}
