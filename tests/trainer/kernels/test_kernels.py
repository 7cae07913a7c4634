"""The choice between Triton and torch: torch unless asked, and a fault with a remedy where Triton cannot run."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from parallel.dispatch.payload import Fp8
from trainer.kernels.choose import make_ops, unavailable
from trainer.model.ops import TORCH

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which has wheels for Linux alone"
)
CUDA = torch.device("cuda")


def test_torch_is_available_everywhere():
    assert make_ops("torch") is TORCH
    assert unavailable("torch", "fp8", torch.device("cpu")) is None


def test_triton_needs_a_gpu():
    fault = unavailable("triton", "fp32", torch.device("cpu"))
    assert fault is not None
    assert (fault.where, fault.value, fault.allowed) == ("train.kernels", "triton", ("torch",))


def test_without_triton_the_fault_names_the_package_that_brings_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fault = unavailable("triton", "fp32", CUDA)
    assert fault is not None
    assert (fault.where, fault.value, fault.allowed) == ("train.kernels", "triton", ("torch",))
    assert "CUDA" in fault.text


@needs_triton
def test_fp8_payloads_need_a_gpu_with_fp8_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert unavailable("triton", "bf16", CUDA) is None
    assert unavailable("triton", "fp8", CUDA) is not None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert unavailable("triton", "fp8", CUDA) is None


@needs_triton
def test_on_a_cpu_torch_is_used_whatever_was_chosen(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ops = make_ops("triton")
    ids, x = torch.tensor([[1], [0], [1]]), torch.randn(3, 200)
    assert not ops.fuses(x)
    assert type(ops.pad_order(RowOrder(ids, 2), 4)) is PaddedOrder
    packed = ops.fp8_payload().pack(x)
    assert torch.equal(packed, Fp8().pack(x))
    unpacked = (payload.unpack(packed, 200, torch.bfloat16) for payload in (ops.fp8_payload(), Fp8()))
    assert torch.equal(*unpacked)


@needs_triton
def test_neither_fp64_nor_the_compiler_gets_kernels(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a CPU counts as a GPU
    x, fuses = torch.zeros(2), make_ops("triton").fuses
    assert fuses(x)
    assert not fuses(x.double())
    assert not TORCH.fuses(x)
    compiled = torch.compile(lambda x: x + 1 if fuses(x) else x - 1, backend="eager", fullgraph=True)
    assert compiled(x).tolist() == [-1, -1]
