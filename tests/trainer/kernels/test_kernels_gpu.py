"""The Triton kernels on CUDA: what the interpreter checks, no host sync, the same result twice, a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.bench.gpu.kernels import results
from tests.trainer.kernels.checks import CHECKS
from tests.trainer.kernels.examples import EXAMPLES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_computes_the_same_as_torch(check):
    CHECKS[check]("cuda")


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_no_host_sync_the_same_twice_and_a_cuda_graph(example):
    call = example.build(300, torch.device("cuda"))
    first = results("triton", call)  # compiles, which no capture allows
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = results("triton", call)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    same(second, first)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results("triton", call)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results("triton", call)
    graph.replay()
    torch.cuda.synchronize()
    same(captured, first)
