"""The gated activation in plain torch against plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.ops import TORCH


def composed(hidden: Tensor, weight: Tensor) -> Tensor:
    gate, up = hidden.chunk(2, dim=-1)
    return F.silu(gate) * up * weight.unsqueeze(-1)


def with_gradients(function, *inputs: Tensor, dy: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.mark.parametrize(("hidden_dtype", "weight_dtype"), [
    (torch.float64, torch.float64), (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16),
])  # fmt: skip
def test_value_and_gradients(hidden_dtype, weight_dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = (3 * torch.randn(13, 2 * 37, generator=generator)).to(hidden_dtype)
    weight = torch.rand(13, generator=generator).to(weight_dtype)
    weight[5] = 0  # a row of padding
    dy = torch.randn(13, 37, generator=generator).to(hidden_dtype)
    found = with_gradients(TORCH.weighted_swiglu, hidden, weight, dy=dy)
    exact = with_gradients(composed, hidden.double(), weight.double(), dy=dy.double())
    for value, wanted, dtype in zip(found, exact, (hidden_dtype, hidden_dtype, weight_dtype), strict=True):
        assert value.dtype == dtype
        # fp32 inside, so one rounding to the result's dtype is all that a narrow one loses
        torch.testing.assert_close(value.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=4e-6)
    assert not found[0][5].any()
    again = TORCH.swiglu_gradients(hidden, weight, dy)
    for value, wanted in zip(again, found, strict=True):
        assert torch.equal(value, wanted)
