"""The GPU bench's code at a tiny size: on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.bench.gpu import COLUMNS, Slice, build, cells, dense_matmuls, measure

TINY = Slice(hidden=64, width=32, experts=16)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_figure_is_there(device):
    result = measure(TINY, tokens=8, rounds=2, device=torch.device(device))
    assert result.tokens == 8
    assert min(result.dense_forward_tflops, result.dense_both_tflops) > 0
    # 2 FLOPs a multiply-add, three matrices of 64 x 32, 8 tokens of 8 experts; three times as many with backward
    flops = 2 * 3 * 64 * 32 * 8 * 8
    assert result.forward_tflops == pytest.approx(flops / result.forward_ms / 1e9)
    assert result.both_tflops == pytest.approx(3 * flops / result.both_ms / 1e9)
    assert len(cells(result)) == len(COLUMNS)


def test_the_layer_is_that_of_a_rank_in_bf16():
    moe = build(TINY, torch.device("cpu"))
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in moe.parameters()) == 16 * 64 + 16 * 3 * 64 * 32
    x = torch.randn(8, 64, dtype=torch.bfloat16, requires_grad=True)
    moe(x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())


def test_the_dense_matmuls_do_the_flops_that_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    for step, times in zip(dense_matmuls(TINY, 8, torch.device("cpu")), (1, 3), strict=True):
        with FlopCounterMode(display=False) as counter:
            step()
        assert counter.get_total_flops() == times * TINY.forward_flops(8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "tests.bench.gpu"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("bench-gpu needs a CUDA device")
    assert "Traceback" not in done.stderr
