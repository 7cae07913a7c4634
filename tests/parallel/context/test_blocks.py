"""Attention in parts: keys seen one part after another give what all give at once, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.context.base import Documents
from parallel.context.blocks import attend, attend_backward, merge
from trainer.model.attention import document_attention

LENGTHS = [40, 1, 23]
FULL = 37  # keys of an earlier piece that every query of the first document sees as well


def inputs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, dy; the first FULL positions are the earlier piece."""
    source = torch.Generator().manual_seed(3)
    shapes = [(FULL + sum(LENGTHS), heads, 16) for heads in (6, 2, 2, 6)]
    return [torch.randn(shape, generator=source).to(device, dtype) for shape in shapes]


def in_parts(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> list[Tensor]:
    """y and the gradients of the positions after the first FULL, and what they give to the keys before."""
    docs = Documents.of_lengths(LENGTHS, q.device)
    q, own_k, own_v, dy = (x[FULL:] for x in (q, k, v, dy))
    k, v = k[:FULL], v[:FULL]
    y, lse = attend(q, own_k, own_v, docs)
    y, lse = y.to(lse.dtype, copy=True), lse.clone()
    first = slice(0, LENGTHS[0])
    merge(y[first], lse[:, first], *attend(q[first], k, v))
    y = y.to(q.dtype)
    dq, dk, dv = attend_backward(dy, q, own_k, own_v, y, lse, docs)
    part = attend_backward(dy[first], q[first], k, v, y[first], lse[:, first])
    dq = dq.clone()
    dq[first] += part[0]
    return [y, dq, torch.cat([part[1], dk]), torch.cat([part[2], dv])]


def at_once(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    lengths = [FULL + LENGTHS[0], *LENGTHS[1:]]
    y = document_attention(*leaves, Documents.of_lengths(lengths, q.device))[FULL:]
    dq, dk, dv = torch.autograd.grad(y, leaves, dy[FULL:])
    return [y.detach(), dq[FULL:], dk, dv]


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str
)
def test_parts_are_the_whole(dtype, bound):
    check(torch.device("cpu"), dtype, bound)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parts_are_the_whole_in_the_flash_kernel(dtype):
    check(torch.device("cuda"), dtype, 1e-2)


def check(device: torch.device, dtype: torch.dtype, bound: float) -> None:
    exact = at_once(*(x.double() for x in inputs(torch.device("cpu"), dtype)))
    for found, expected in zip(in_parts(*inputs(device, dtype)), exact, strict=True):
        assert found.dtype == dtype
        assert (found.cpu().double() - expected).norm() <= bound * expected.norm()
