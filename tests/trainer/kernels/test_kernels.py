"""The choice between Triton and torch: torch unless asked, and one clear error where Triton is not there."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from parallel.dispatch import RowOrder
from parallel.fp8 import dequantize_tiles, quantize_tiles
from parallel.padding import PaddedOrder
from trainer import kernels
from trainer.kernels.quantize import dequantize_rows, quantize_rows
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
    found, expected = quantize_rows(x), quantize_tiles(x, (1, 128))
    assert torch.equal(found[0].float(), expected[0].float())
    assert torch.equal(found[1], expected[1])
    values = dequantize_rows(*found, torch.bfloat16)
    assert torch.equal(values, dequantize_tiles(*expected, (1, 128), torch.bfloat16))
