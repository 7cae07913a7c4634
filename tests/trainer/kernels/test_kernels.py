"""The choice between Triton and torch: torch unless asked, and one clear error where Triton is not there."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from parallel.dispatch.payload import Fp8
from trainer import kernels
from trainer.kernels.payload import FusedFp8
from trainer.kernels.rows import pad_order


def test_another_name_is_refused_with_the_names_that_work():
    with pytest.raises(ValueError, match=r"train\.kernels=cutlass is not known; use torch or triton"):
        kernels.use("cutlass")


def test_without_triton_the_error_says_what_brings_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs the package triton, .* CUDA builds .* use train\.kernels=torch"):
        kernels.use("triton")
    assert not kernels.on_triton(torch.zeros(1))


def test_on_a_cpu_torch_is_used_whatever_was_chosen(monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ids, x = torch.tensor([[1], [0], [1]]), torch.randn(3, 200)
    assert type(pad_order(RowOrder(ids, 2), 4)) is PaddedOrder
    packed = FusedFp8().pack(x)
    assert torch.equal(packed, Fp8().pack(x))
    unpacked = (payload.unpack(packed, 200, torch.bfloat16) for payload in (FusedFp8(), Fp8()))
    assert torch.equal(*unpacked)


def test_neither_fp64_nor_the_compiler_gets_kernels(monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a CPU counts as a GPU
    x = torch.zeros(2)
    assert kernels.on_triton(x)
    assert not kernels.on_triton(x.double())
    compiled = torch.compile(lambda x: x + 1 if kernels.on_triton(x) else x - 1, backend="eager", fullgraph=True)
    assert compiled(x).tolist() == [-1, -1]
