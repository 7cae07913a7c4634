"""Every back end of the experts against all tokens through all experts in fp64, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from parallel.dispatch.base import RowOrder
from tests.trainer.model.tiny import assert_close
from trainer.model.experts.choose import UNQUANTISED
from trainer.model.experts.fused_grouped_mm import FusedSwiGLU
from trainer.model.experts.grouped_mm import GroupedSwiGLU
from trainer.model.experts.module import Experts
from trainer.model.numerics import select_experts
from trainer.model.ops import TORCH

pytestmark = pytest.mark.usefixtures("poisoned_memory")

E, H, I = 6, 16, 20  # noqa: E741
# grouped_rows is what grouped_mm is on a GPU; torch's grouped GEMM takes fp32 on a CPU, and so its algebra is checked.
ALL = {
    **UNQUANTISED,
    "grouped_rows": GroupedSwiGLU.apply,
    "fused_rows": lambda *arguments: FusedSwiGLU.apply(*arguments, TORCH),
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids_of(tokens: int, k: int, experts: list[int], seed: int = 0) -> Tensor:
    """k distinct ones of `experts` for each token, in random order."""
    noise = torch.rand(tokens, len(experts), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(experts)[noise.argsort(dim=-1)[:, :k]]


ROUTINGS = {
    "top-2": ids_of(17, 2, [0, 1, 2, 3, 4, 5]),
    "top-1": ids_of(17, 1, [0, 1, 2, 3, 4, 5]),
    "every expert": ids_of(5, 6, [0, 1, 2, 3, 4, 5]),
    "two of each of two groups": select_experts(normal(17, E, seed=4), groups=2, experts_per_token=4),
    "first, middle and last expert without tokens": ids_of(17, 2, [1, 2, 4]),
    "all tokens to one expert": ids_of(17, 1, [3]),
    "one token": ids_of(1, 2, [0, 1, 2, 3, 4, 5]),
    "one token, one expert": ids_of(1, 1, [5]),
    # More rows than a back end would work on at once.
    "thousands of rows": ids_of(1300, 2, [0, 1, 2, 3, 4, 5]),
    "many rows, gaps between experts": ids_of(900, 2, [1, 2, 4]),
    "many rows to one expert, none to the last": ids_of(700, 1, [4]),
}


def inputs(ids: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    made = {
        "x": normal(len(ids), H, seed=1), "weights": normal(*ids.shape, seed=2).exp(),
        "w13": normal(E, 2, I, H, seed=3) / H**0.5, "w2": normal(E, H, I, seed=4) / I**0.5,
    }  # fmt: skip
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def dense(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, ids: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for expert in range(E):
        gate, up = x @ w13[expert, 0].T, x @ w13[expert, 1].T
        weight_T1 = (weights * (ids == expert)).sum(1, keepdim=True)
        y = y + weight_T1 * ((gate / (1 + torch.exp(-gate)) * up) @ w2[expert].T)
    return y


def with_gradients(y: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(y, list(leaves.values()), normal(*y.shape, seed=7).to(y.dtype))
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(
    ("backend", "dtype", "bound"),
    [
        ("grouped_mm", torch.float64, 1e-12),
        ("loop", torch.float64, 1e-12),
        ("grouped_mm", torch.float32, 2e-6),
        ("loop", torch.float32, 2e-6),
        ("grouped_rows", torch.float32, 2e-6),
    ],
)
def test_backends_equal_the_dense_computation(backend, dtype, bound, routing):
    ids = ROUTINGS[routing]
    exact = inputs(ids, torch.float64)
    expected = with_gradients(dense(**exact, ids=ids), exact)
    leaves = inputs(ids, dtype)
    found = with_gradients(ALL[backend](*leaves.values(), RowOrder(ids, E)), leaves)
    assert all(tensor.dtype == dtype for tensor in found.values())
    for expert in set(range(E)) - set(ids.flatten().tolist()):
        for name in ("w13", "w2"):
            assert torch.equal(found[name][expert], torch.zeros_like(found[name][expert])), f"{name} of {expert}"
    assert_close(found, expected, bound)


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
def test_gradcheck(backend):
    torch.use_deterministic_algorithms(False)  # gradcheck itself reads torch.empty
    ids = torch.tensor([[0, 2], [2, 0], [0, 3]])  # expert 1 gets nothing
    shapes = {"x": (3, 3), "weights": (3, 2), "w13": (4, 2, 2, 3), "w2": (4, 3, 2)}
    leaves = [normal(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes.values())]
    order = RowOrder(ids, 4)
    assert gradcheck(lambda *tensors: UNQUANTISED[backend](*tensors, order), leaves)


@pytest.mark.parametrize("backend", sorted(ALL))
def test_rows_are_added_in_the_order_of_the_slots_where_that_is_asked_for(backend):
    """Three experts alike, weighted 2^27, -2^27 and 1: only in that order is the last one not lost in fp32."""
    ids = torch.tensor([[0, 2, 1]] * 4)
    leaves = inputs(ids, torch.float32)
    with torch.no_grad():
        for weight in (leaves["w13"], leaves["w2"]):
            weight.copy_(weight[:1].expand_as(weight).clone())
        leaves["weights"].copy_(torch.tensor([2.0**27, -(2.0**27), 1.0]))
    one = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    one["weights"] = torch.ones(4, 1).requires_grad_()
    found = ALL[backend](*leaves.values(), RowOrder(ids, E, by_slot=True))
    expected = ALL[backend](*one.values(), RowOrder(ids[:, :1], E))
    assert_close({"y": found}, {"y": expected}, 1e-5)
    (dx,) = torch.autograd.grad(found.sum(), leaves["x"])
    (of_one,) = torch.autograd.grad(expected.sum(), one["x"])
    assert_close({"dx": dx}, {"dx": of_one}, 1e-5)


@pytest.mark.parametrize("backend", sorted(ALL))
def test_a_gradient_that_is_an_expanded_view(backend):
    """The gradient that `y.sum().backward()` sends: one number in place of a tensor."""
    ids = ROUTINGS["top-2"]
    exact, leaves = inputs(ids, torch.float64), inputs(ids, torch.float32)
    dense(**exact, ids=ids).sum().backward()
    ALL[backend](*leaves.values(), RowOrder(ids, E)).sum().backward()
    assert_close({n: t.grad for n, t in leaves.items()}, {n: t.grad for n, t in exact.items()}, 2e-6)


@pytest.mark.parametrize("backend", sorted(UNQUANTISED))
def test_module_computes_in_the_dtype_of_its_input_and_keeps_fp32_masters(backend):
    """bf16 activations, fp32 parameters and routing weights: each gradient comes back in its own dtype."""
    experts, ids = Experts(E, H, I, UNQUANTISED[backend]), ROUTINGS["top-2"]
    leaves = inputs(ids, torch.float32)
    with torch.no_grad():
        experts.w13.copy_(leaves["w13"])
        experts.w2.copy_(leaves["w2"])
    x = leaves["x"].detach().bfloat16().requires_grad_()
    y = experts(x, leaves["weights"], RowOrder(ids, E))
    found = with_gradients(y, {"x": x, "weights": leaves["weights"], "w13": experts.w13, "w2": experts.w2})
    assert {name: t.dtype for name, t in found.items()} == {
        "y": torch.bfloat16, "x": torch.bfloat16, "weights": torch.float32, "w13": torch.float32, "w2": torch.float32
    }  # fmt: skip
    exact = inputs(ids, torch.float64)
    assert_close(found, with_gradients(dense(**exact, ids=ids), exact), 2e-2)
