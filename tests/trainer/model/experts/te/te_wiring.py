"""Shared by the tests of experts on Transformer Engine: sizes, tensors, runs and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallel.dispatch.base import RowOrder
from trainer.model.experts.base import QuantizedBackend
from trainer.model.experts.te.linear import TransformerEngine

E, H, I, K = 6, 64, 32, 2  # noqa: E741
PATHS = {"native": "fp8_block", "list": "fp8_current", "mxfp8": "mxfp8"}
ROUTINGS = {
    "all": [0, 1, 2, 3, 4, 5],
    "first, middle and last expert without tokens": [1, 2, 4],
    "two": [4, 5],
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def order_of(tokens: int, experts: Sequence[int] = range(E), seed: int = 0) -> RowOrder:
    noise = torch.rand(tokens, len(experts), generator=torch.Generator().manual_seed(seed))
    return RowOrder(torch.tensor(list(experts))[noise.argsort(dim=-1)[:, :K]], E)


def weights_of(dtype: torch.dtype) -> dict[str, Tensor]:
    made = {"w13": normal(E, 2, I, H, seed=3) / H**0.5, "w2": normal(E, H, I, seed=4) / I**0.5}
    return {name: weight.to(dtype).requires_grad_() for name, weight in made.items()}


def tokens_of(tokens: int, dtype: torch.dtype, seed: int = 1) -> dict[str, Tensor]:
    made = {"x": normal(tokens, H, seed=seed), "weights": normal(tokens, K, seed=seed + 1).exp()}
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def run(backend: Any, order: RowOrder, leaves: dict[str, Tensor], dy_scale: float = 1.0) -> dict[str, Tensor]:
    y = backend(*(leaves[name] for name in ("x", "weights", "w13", "w2")), order)
    grads = torch.autograd.grad(y, list(leaves.values()), (dy_scale * normal(*y.shape, seed=7)).to(y.dtype))
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


def calls(backend: TransformerEngine) -> list[tuple[bool | None, bool]]:
    """(is_first_microbatch, whether the GEMM adds to a gradient) of each call, which must be those of both GEMMs."""
    assert backend._gemms is not None
    into, out_of = ([(call.first, call.adds) for call in gemm.linear.calls] for gemm in backend._gemms)
    assert into == out_of
    return into


def steps(backend: Any, weights: dict[str, Tensor], recompute: bool = False) -> list[dict[str, Tensor]]:
    """Two steps of three micro-batches; the gradients of each."""
    found = []
    for _ in range(2):
        if isinstance(backend, QuantizedBackend):
            backend.hold_weights(True)
        for micro_batch in range(3):
            leaves, order = tokens_of(20, torch.float64, seed=10 * micro_batch), order_of(20, seed=micro_batch)
            arguments = (leaves["x"], leaves["weights"], weights["w13"], weights["w2"], order)
            y = checkpoint(backend, *arguments, use_reentrant=False) if recompute else backend(*arguments)
            y.backward(normal(*y.shape, seed=7))
        if isinstance(backend, QuantizedBackend):
            backend.hold_weights(False)
        found.append({name: weight.grad.double() for name, weight in weights.items() if weight.grad is not None})
        with torch.no_grad():
            for weight in weights.values():
                weight.mul_(1.5)
                weight.grad = None
    return found


each_path = pytest.mark.parametrize("stand_in", PATHS, indirect=True)
