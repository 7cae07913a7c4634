"""Our towers under published names, beside other code with the same random weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.weights.towers.map import tower_pieces


def randomise(module: nn.Module, seed: int = 11, std: float = 0.2) -> None:
    """Random values for everything, so that a part that is swapped or left out shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(drawn + (parameter.ndim == 1 and not name.endswith("bias")))  # norms are around 1


@torch.no_grad()
def copy_published(tower: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Fill a tower, called `name` in a `Multimodal`, from tensors under full published names."""
    state = {f"{name}.{key}": tensor for key, tensor in tower.state_dict().items()}
    for piece in tower_pieces({key: tuple(tensor.shape) for key, tensor in state.items()}):
        state[piece.parameter][piece.box] = tensors[piece.name]


def published_tensors(tower: nn.Module, name: str) -> dict[str, Tensor]:
    """Parameters and tables of a tower under full published names."""
    state = {f"{name}.{key}": tensor for key, tensor in tower.state_dict().items()}
    pieces = tower_pieces({key: tuple(tensor.shape) for key, tensor in state.items()})
    return {piece.name: state[piece.parameter][piece.box] for piece in pieces}


def published_gradients(tower: nn.Module, name: str) -> dict[str, Tensor]:
    """Gradients of a tower's parameters under full published names; a parameter without one fails here."""
    grads = {f"{name}.{key}": parameter.grad for key, parameter in tower.named_parameters()}
    pieces = tower_pieces({key: tuple(grad.shape) for key, grad in grads.items() if grad is not None})
    assert None not in grads.values()
    return {piece.name: grads[piece.parameter][piece.box] for piece in pieces}
