"""Sources to expand, and expansions of them written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.trainer.weights.directories import APART, Checkpoint, checkpoint
from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.hf_write import write_directory
from trainer.weights.upcycle.placement import CopyPlacement, Expansion
from trainer.weights.upcycle.stream import Upcycled, plan_upcycle

SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
    "num_experts": 16, "experts_per_token": 8, "router_groups": 1, "expert_width": 16,
}  # fmt: skip


def decoder(seed: int = 0, **sizes: Any) -> Decoder:
    """A plain model, with weights so large that its routers have preferences."""
    with torch.device("meta"):
        model = Decoder(ModelConfig(**{**SIZES, "init_std": 0.3, **sizes}))
    model.to_empty(device="cpu").init_weights(seed)
    return model


def checkpoint_of(directory: Path, layout: str = APART, **sizes: Any) -> Checkpoint:
    """Rotary embeddings without Fourier features, as the models that are expanded have."""
    made = checkpoint(directory, decoder(**sizes), layout=layout)
    made.config["text_config"]["rope_scaling"] = None
    return made


def opened(directory: Path) -> SourceModel:
    return survey_directory(open_directory(directory))


def expanded(directory: Path, target: Path, dtype: Any = "source", **asked: Any) -> tuple[Upcycled, CopyPlacement]:
    """Expand one directory into another, with all groups in memory but what is written."""
    source = opened(directory)
    expansion = Expansion(**asked)
    made = plan_upcycle(source, expansion, dtype)
    write_directory(target, made.bundles, made.config, made.side_files, manifest={"upcycle": made.facts})
    return made, made.placement
