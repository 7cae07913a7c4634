"""The GPU bench of our Triton kernels: on a CPU their twins, and, in Triton's place, these again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.bench.gpu import kernels
from tests.bench.gpu.clock import Clock
from tests.trainer.kernels.examples import EXAMPLES, Call

CLOCK = Clock(torch.device("cpu"))


def test_every_kernel_has_its_twins_figures_where_there_is_no_triton():
    rows = list(kernels.measure(1, 1, CLOCK))
    assert [row.arm for row in rows] == [example.name for example in EXAMPLES]
    for row in rows:
        assert row.torch_ms > 0
        assert row.triton_ms is None
        assert row.skipped == "Triton's kernels need a CUDA device"
        assert kernels.line(row).count("|") == len(kernels.COLUMNS) + 1
    json.dumps([row.record() for row in rows])


def test_a_kernel_is_compared_with_its_twin(monkeypatch):
    heard = ["torch"]
    monkeypatch.setattr(kernels, "why_not", lambda device: None)
    monkeypatch.setattr(kernels.kernels, "use", heard.append)
    monkeypatch.setattr(kernels.kernels, "chosen", lambda: heard[-1])
    swiglu = EXAMPLES[0]

    def off(tokens: int, device: torch.device) -> Call:
        call = swiglu.build(tokens, device)
        return lambda: call() * (2 if heard[-1] == "triton" else 1)

    def broken(tokens: int, device: torch.device) -> Call:
        def call() -> torch.Tensor:
            if heard[-1] == "triton":
                raise RuntimeError("out of registers")
            return torch.ones(1)

        return call

    index = next(example for example in EXAMPLES if example.name == "index build")
    some = [swiglu, index, replace(swiglu, build=off), replace(swiglu, build=broken)]
    monkeypatch.setattr(kernels, "EXAMPLES", some)
    good, order, wrong, failed = kernels.measure(1, 1, CLOCK)
    assert good.distance == order.distance == 0
    assert good.triton_ms is not None
    assert f"| {good.torch_ms / good.triton_ms:.2f}x |" in kernels.line(good)
    assert f"| {swiglu.bytes(1) / good.triton_ms / 1e6:.0f} |" in kernels.line(good)
    assert wrong.skipped == "FAILED: its results are off by 1"
    assert failed.skipped == "FAILED: RuntimeError: out of registers"
    assert wrong.triton_ms is failed.triton_ms is None
    assert heard[-1] == "torch", "Triton's kernels stay in use"


@pytest.mark.gpu
def test_the_kernels_on_a_gpu():
    for row in kernels.measure(256, 1, Clock(torch.device("cuda"))):
        assert row.skipped is None
        assert row.triton_ms is not None
        assert row.host_syncs[1] == 0
