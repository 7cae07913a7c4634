"""Transformer Engine itself, on a GPU: against the reference and bf16, without host syncs, in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallel.dispatch.base import RowOrder
from tests.trainer.model.tiny import assert_close, relative
from trainer.model.experts.fp8_reference import Fp8Reference
from trainer.model.experts.grouped_mm import grouped_mm
from trainer.model.experts.te import support
from trainer.model.experts.te.linear import TransformerEngine
from trainer.model.experts.te.support import RECIPES

CUDA = torch.device("cuda")
E, H, I, K, T = 8, 512, 384, 2, 1000  # noqa: E741  # neither T*K rows nor an expert's part is a multiple of 128

pytestmark = pytest.mark.gpu
recipes = pytest.mark.parametrize("recipe", RECIPES)
# Most rows to one expert, few to another, none to the first and the last.
ROUTINGS = {"even": [1.0] * E, "skewed": [0.0, 8.0, 1.0, 1.0, 0.05, 1.0, 2.0, 0.0]}
routings = pytest.mark.parametrize("routing", ROUTINGS)


def engine(recipe: str) -> TransformerEngine:
    if reason := support.unavailable(recipe, CUDA):
        pytest.skip(reason)
    return TransformerEngine(recipe)


def native_engine(recipe: str) -> TransformerEngine:
    made = engine(recipe)
    if "list path" in (said := made.describe(E)):
        pytest.skip(said)
    return made


def order_of(routing: str, seed: int = 0) -> RowOrder:
    generator = torch.Generator().manual_seed(seed)
    return RowOrder(torch.multinomial(torch.tensor([ROUTINGS[routing]] * T), K, generator=generator).to(CUDA), E)


def leaves_of(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {
        "x": torch.randn(T, H, generator=generator).bfloat16(), "weights": torch.rand(T, K, generator=generator),
        "w13": torch.randn(E, 2, I, H, generator=generator) / H**0.5,
        "w2": torch.randn(E, H, I, generator=generator) / I**0.5,
    }  # fmt: skip
    return {name: leaf.to(CUDA).requires_grad_() for name, leaf in made.items()}


def run(backend: Any, order: RowOrder, leaves: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    y = backend(*leaves.values(), order)
    return {"y": y.detach()} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))


def gradient_of_y(seed: int = 2) -> Tensor:
    return torch.randn(T, H, generator=torch.Generator().manual_seed(seed)).bfloat16().to(CUDA)


@routings
def test_block_scaling_is_the_reference(routing):
    leaves, order, dy = leaves_of(), order_of(routing), gradient_of_y()
    found = run(engine("fp8_block"), order, leaves, dy)
    assert_close(found, run(Fp8Reference(), order, leaves, dy), 1e-2)


@routings
def test_both_paths_give_the_same_numbers(routing, monkeypatch):
    leaves, order, dy = leaves_of(), order_of(routing), gradient_of_y()
    native = run(native_engine("fp8_block"), order, leaves, dy)
    monkeypatch.setattr(support, "why_list_path", lambda *_: "the test says so")
    assert_close(run(engine("fp8_block"), order, leaves, dy), native, 3e-3)


@recipes
@routings
def test_near_bf16(recipe, routing):
    """As far from bf16 as 4 (e5m2: 3) significant bits of each operand are."""
    leaves, order, dy = leaves_of(), order_of(routing), gradient_of_y()
    found = run(engine(recipe), order, leaves, dy)
    expected = run(grouped_mm, order, leaves, dy)
    assert_close(found, expected, 0.15)
    assert relative(found["y"], expected["y"]) > 1e-2, "is it quantised?"


def three_micro_batches(backend: Any, forward: Callable[..., Tensor]) -> dict[str, Tensor]:
    """The gradients of a step, and the output of its last micro-batch."""
    weights = {name: leaf for name, leaf in leaves_of().items() if name in ("w13", "w2")}
    if hasattr(backend, "hold_weights"):
        backend.hold_weights(True)
    for seed in (1, 2, 3):
        leaves = leaves_of(seed) | weights
        y = forward(backend, *leaves.values(), order_of("skewed", seed))
        y.backward(gradient_of_y(seed))
    if hasattr(backend, "hold_weights"):
        backend.hold_weights(False)
    return {"y": y.detach()} | {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def plainly(backend: Any, *arguments: Any) -> Tensor:
    return backend(*arguments)


def recomputed(backend: Any, *arguments: Any) -> Tensor:
    return checkpoint(backend, *arguments, use_reentrant=False, preserve_rng_state=False)


def test_a_step_is_the_reference():
    """Kept weights, and gradients that the GEMMs add to."""
    assert_close(three_micro_batches(engine("fp8_block"), plainly), three_micro_batches(Fp8Reference(), plainly), 1e-2)


@recipes
def test_recomputing_changes_nothing(recipe):
    found = three_micro_batches(engine(recipe), recomputed)
    assert_close(found, three_micro_batches(engine(recipe), plainly), 1e-6)


def test_delayed_scales_follow():
    """Numbers ten times as large are clipped in the step in which they come; in the next one w2 sees for the first time
    what is no longer clipped before it; then all is well."""
    backend, weights = engine("fp8_delayed"), leaves_of()
    errors = []
    for size in (1.0, 10.0, 10.0, 10.0):
        leaves = {name: leaf.detach() * (size if name == "x" else 1.0) for name, leaf in weights.items()}
        leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
        order, dy = order_of("even"), gradient_of_y()
        backend.hold_weights(True)
        found = run(backend, order, leaves, dy)
        backend.hold_weights(False)
        errors.append(relative(found["y"], run(grouped_mm, order, leaves, dy)["y"]))
    assert errors[1] > errors[2] > 0.15
    assert max(errors[0], errors[3]) < 0.15


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("recipe", ["fp8_block", "fp8_current", "mxfp8"])
def test_no_host_sync(recipe, held):
    backend, leaves, order, dy = native_engine(recipe), leaves_of(), order_of("skewed"), gradient_of_y()
    backend.hold_weights(held)

    def micro_batch() -> None:
        backend(*leaves.values(), order).backward(dy)

    for _ in range(2):  # makes the gradient, then adds to it in place
        micro_batch()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        micro_batch()
        backend.hold_weights(False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recipe", ["fp8_block", "fp8_current", "mxfp8"])
def test_the_layer_is_captured_in_a_cuda_graph(recipe):
    backend, leaves, dy = native_engine(recipe), leaves_of(), gradient_of_y()
    ids = torch.multinomial(torch.tensor([ROUTINGS["even"]] * T), K).to(CUDA)

    def layer() -> dict[str, Tensor]:
        return run(backend, RowOrder(ids, E), leaves, dy)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            layer()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer()
    with torch.no_grad():  # another routing, other weights, other tokens
        ids.copy_(torch.multinomial(torch.tensor([ROUTINGS["skewed"]] * T), K).to(CUDA))
        for leaf in leaves.values():
            leaf.mul_(1.5)
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    assert_close(captured, layer(), 1e-3)
