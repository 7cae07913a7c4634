"""The products with adapters: grouped ones against one matmul after another, also for ranks that have to be padded."""

from __future__ import annotations

import pytest
import torch

from parallel.dispatch.base import RowOrder
from tests.trainer.model.tiny import assert_close
from trainer.model.lora.gemm import GroupedProducts, LoopProducts, Rows
from trainer.model.ops import TORCH

E, T, K, WIDE = 5, 19, 2, 64
ON = [("cpu", torch.float32, 1e-6), pytest.param("cuda", torch.bfloat16, 2e-2, marks=pytest.mark.gpu)]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("rank", [3, 4, 16])
@pytest.mark.parametrize(("device", "dtype", "bound"), ON)
def test_grouped_products_are_those_of_the_loop(device, dtype, bound, rank):
    generator = torch.Generator().manual_seed(rank)
    noise = torch.rand(T, 3, generator=generator)
    order = RowOrder(torch.tensor([1, 2, 4])[noise.argsort(dim=-1)[:, :K]], E)  # two experts without rows
    there = RowOrder(order.ids.to(device), E)
    exact = Rows(order, TORCH.pad_order(order, 1))
    rows = Rows(there, TORCH.pad_order(there, 1))
    x, low = (torch.randn(T * K, size, generator=generator) for size in (WIDE, rank))
    a, b = (torch.randn(E, *size, generator=generator) for size in ((WIDE, rank), (rank, WIDE)))

    def products(kind, rows, x, low, a, b):
        return {"down": kind.times(x, a, rows), "up": kind.times(low, b, rows), "outer": kind.outer(low, x, rows)}

    found = products(GroupedProducts(), rows, *(tensor.to(device, dtype) for tensor in (x, low, a, b)))
    expected = products(LoopProducts(), exact, x, low, a, b)
    assert_close({name: tensor.float().cpu() for name, tensor in found.items()}, expected, bound)
