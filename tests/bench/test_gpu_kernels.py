"""The GPU bench of our Triton kernels, at a tiny size: on a CPU their twins, and Triton's place taken by them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.bench.gpu import kernels
from tests.bench.gpu.clock import Clock
from tests.bench.gpu.routing import Size, Slice

PART = Slice(hidden=256, width=128, experts=16, heads=4, kv_heads=2, head_dim=16)
SIZE = Size(PART, 32, "zipf", torch.float32, torch.device("cpu"))


def test_every_kernel_has_its_twins_figures_where_there_is_no_triton():
    rows = list(kernels.measure(SIZE, 1, Clock(SIZE.device)))
    assert [row.arm for row in rows] == list(kernels.KERNELS)
    for row in rows:
        assert row.triton is None
        assert row.skipped == "Triton's kernels need a CUDA device"
        assert kernels.line(row).count("|") == len(kernels.COLUMNS) + 1
    json.dumps([row.record() for row in rows])


def test_a_kernel_is_compared_with_its_twin(monkeypatch):
    heard: list[str] = []
    monkeypatch.setattr(kernels, "why_not", lambda device: None)
    monkeypatch.setattr(kernels.kernels, "use", heard.append)

    def off(size: Size) -> kernels.Work:
        work, calls = kernels.swiglu(size), iter(range(9))
        return replace(work, run=lambda: (work.run()[0] * (1 + next(calls)),))

    def broken(size: Size) -> kernels.Work:
        work = kernels.swiglu(size)

        def run() -> tuple[Tensor, ...]:
            if heard[-1] == "triton":
                raise RuntimeError("out of registers")
            return work.run()

        return replace(work, run=run)

    table_of = {"swiglu": kernels.swiglu, "off": off, "broken": broken}
    monkeypatch.setattr(kernels, "KERNELS", table_of)
    good, wrong, failed = kernels.measure(SIZE, 1, Clock(SIZE.device))
    assert good.distance == 0
    assert good.triton is not None
    assert f"{good.torch.forward_ms / good.triton.forward_ms:.2f}x" in kernels.line(good)
    assert wrong.skipped == "FAILED: its results are off by 1"
    assert failed.skipped == "FAILED: RuntimeError: out of registers"
    assert wrong.triton is failed.triton is None
    assert heard[-1] == "torch", "Triton's kernels stay in use"


@pytest.mark.parametrize(("name", "count"), [("SwiGLU x routing weight", 3), ("gather to padded rows", 2)])
def test_the_bytes_that_a_kernel_moves_are_those_of_its_tensors(name, count):
    work = kernels.KERNELS[name](SIZE)
    made = work.arm("torch", []).both()
    outputs, gradients = made[:1], made[1:]
    assert len(made) == count
    inputs = sum(leaf.nbytes for leaf in work.leaves if leaf.ndim > 1)
    if name == "gather to padded rows":  # a row is read for each that is written, but for padding
        inputs = 32 * 8 * 256 * 4
    assert work.forward_bytes == inputs + outputs[0].nbytes
    back = sum(t.nbytes for t in gradients if t.ndim > 1)
    # backward reads the gradient of what was made (the gather's: only rows that are no padding), and what was kept
    read = inputs + outputs[0].nbytes if count == 3 else inputs
    assert work.both_bytes == work.forward_bytes + read + back


@pytest.mark.gpu
def test_the_kernels_on_a_gpu():
    size = replace(SIZE, dtype=torch.bfloat16, device=torch.device("cuda"))
    for row in kernels.measure(size, 1, Clock(size.device)):
        assert row.skipped is None
        assert row.triton is not None
        assert row.triton.host_syncs == 0
