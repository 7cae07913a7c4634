"""The Triton kernels on CUDA: the checks of the interpreter, no host sync, a CUDA graph, the routes' determinism."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.trainer.kernels.checks import CHECKS
from tests.trainer.kernels.examples import EXAMPLES
from trainer import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


@pytest.fixture
def triton() -> Iterator[None]:
    kernels.use("triton")
    yield
    kernels.use("torch")


@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_computes_what_its_twin_does(check):
    CHECKS[check]("cuda")


@each_example
def test_no_host_sync_and_the_same_twice(example, triton):
    call = example.build(300, torch.device("cuda"))
    kernels.use("triton")  # building chose for itself
    first = leaves(call())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = leaves(call())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@each_example
def test_a_kernel_is_captured_in_a_cuda_graph(example, triton):
    call = example.build(300, torch.device("cuda"))
    kernels.use("triton")
    expected = leaves(call())  # compiles, which no capture allows
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = leaves(call())
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def leaves(found: object) -> list[torch.Tensor]:
    """The tensors of what a call returns."""
    if isinstance(found, torch.Tensor):
        return [found.detach().contiguous()]
    parts = vars(found).values() if hasattr(found, "token_of_row") else found
    return [part.detach().contiguous() for part in parts if isinstance(part, torch.Tensor)]
