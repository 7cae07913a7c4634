"""Models small enough for tests, and how their numbers are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.data.batch import IGNORE
from trainer.model.decoder import Decoder
from trainer.model.router import RouterStats
from trainer.objectives.next_token import chunked_cross_entropy

# Every size differs from every other where it can, so that a swapped dimension cannot go unseen.
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "head_dim": 8,
    "num_experts": 12, "experts_per_token": 4, "router_groups": 2, "expert_width": 20,
    "positions": "fope", "rope_theta": 100.0, "max_position": 64, "init_std": 0.2,
}  # fmt: skip


def model_config(**changed: Any) -> ModelConfig:
    return ModelConfig(**{**SIZES, **changed})


def build(cfg: ModelConfig, *, dtype: torch.dtype = torch.float32, compute_dtype: torch.dtype | None = None) -> Decoder:
    """A model with random norms too: at their initial 1 a swapped or forgotten one would change nothing."""
    with torch.device("meta"):
        model = Decoder(cfg, compute_dtype)
    model = model.to(dtype).to_empty(device="cpu")
    model.init_weights(seed=5)
    randomise_norms(model)
    return model


@torch.no_grad()
def randomise_norms(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(17)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)


def random_ids(cfg: ModelConfig, batch: int, seq_len: int, seed: int = 3) -> Tensor:
    return torch.randint(cfg.vocab_size, (batch, seq_len), generator=torch.Generator().manual_seed(seed))


def next_tokens(input_ids: Tensor) -> Tensor:
    """Labels of rows that are one document each."""
    return torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=IGNORE)


def logits(model: Decoder, *args: Any, **inputs: Any) -> Tensor:
    """[B, S, V] for the inputs of `Decoder.forward`."""
    return model.logits(model(*args, **inputs).hidden)


def summed_loss(model: Decoder, ids: Tensor, labels: Tensor, chunk: int = 512) -> tuple[Tensor, RouterStats]:
    """Cross-entropy summed over the labels, and the routers' statistics."""
    hidden, routing = model(ids)
    return chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head, labels.flatten(), chunk), routing


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients by parameter name, which are then cleared; a parameter without one fails here."""
    copies = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        copies[name] = parameter.grad.clone()
        parameter.grad = None
    return copies


def relative(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||, in fp64; what should be zero must be."""
    assert found.shape == expected.shape
    difference, size = (x.detach().double().norm().item() for x in (found - expected, expected))
    return difference / size if size else (float("inf") if difference else 0.0)


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], bound: float) -> None:
    """Per tensor; reports the first that is off, NaN included."""
    assert found.keys() == expected.keys()
    for name in expected:
        error = relative(found[name], expected[name])
        assert error <= bound, f"{name}: {error:.2e} relative, allowed {bound:.0e}"
