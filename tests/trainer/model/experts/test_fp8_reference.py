"""The FP8 experts against a model of the same formulas: fp64, plain autograd, one expert after another."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.dispatch.base import Dispatcher, RowOrder
from parallel.dispatch.local import LocalDispatch
from parallel.groups import Placement, map_groups
from tests.distributed.pool import on_ranks
from tests.parallel.dispatch.moe_layer import Case, Tensors, build_layer, joined, run_layer
from tests.parallel.fp8_formula import expected_tiles
from tests.trainer.model.tiny import assert_close, relative
from trainer.model.experts import fp8_reference
from trainer.model.experts.base import QuantizedBackend
from trainer.model.experts.fp8_reference import Fp8Reference
from trainer.model.experts.loop import loop

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Neither 160 nor 2 * 72 is a multiple of 128, and a tile of w13 holds rows of both halves.
E, H, I = 5, 160, 72  # noqa: E741
ACROSS, DOWN, SQUARE = (1, 128), (128, 1), (128, 128)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids_of(tokens: int, k: int, experts: list[int]) -> Tensor:
    noise = torch.rand(tokens, len(experts), generator=torch.Generator().manual_seed(tokens))
    return torch.tensor(experts)[noise.argsort(dim=-1)[:, :k]]


ROUTINGS = {
    "two of five": ids_of(330, 2, [0, 1, 2, 3, 4]),
    "first and last expert without rows": ids_of(150, 2, [1, 2, 3]),
    "all rows to one": ids_of(300, 1, [2]),
    "full tiles, and one row more": torch.tensor([0] * 128 + [1] * 129 + [4] * 256).view(-1, 1),
    "one token": ids_of(1, 3, [0, 1, 2, 3, 4]),
}


def spread(rows: int, columns: int, seed: int, powers: float) -> Tensor:
    """Normal numbers times powers of two, by row and by column.

    Over so wide a range some of a tile's numbers are too small for e4m3. In all others its rounding does not depend on
    the scale, and a wrong tile would go unseen.
    """
    power = powers * (normal(rows, 1, seed=seed + 1) + normal(1, columns, seed=seed + 2))
    return normal(rows, columns, seed=seed) * 2.0**power


def leaves_of(ids: Tensor, dtype: torch.dtype = torch.float32, powers: float = 3.0) -> dict[str, Tensor]:
    """x in `dtype`, the others in fp32."""
    w2 = torch.stack([spread(H, I, seed=10 * expert, powers=powers) for expert in range(E)])
    made = {
        "x": spread(len(ids), H, seed=1, powers=powers).to(dtype), "weights": normal(*ids.shape, seed=2).exp(),
        "w13": normal(E, 2, I, H, seed=3) / (20 * H if powers else H**0.5), "w2": w2 / I**0.5,
    }  # fmt: skip
    return {name: tensor.requires_grad_() for name, tensor in made.items()}


def gradient_of(y: Tensor, powers: float = 3.0) -> Tensor:
    return spread(len(y), H, seed=7, powers=powers).to(y.dtype)


def with_gradients(y: Tensor, leaves: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach()} | dict(zip(leaves, grads, strict=True))


def formula(x: Tensor, tile: tuple[int, int]) -> Tensor:
    return torch.from_numpy(expected_tiles(x, tile)[2])


def quantised_linear(x: Tensor, w: Tensor) -> Tensor:
    """x w^T of one expert's rows in fp64: the value and x's gradient from one pair of roundings, w's from another."""
    rounded, stored = formula(w, SQUARE), x.detach()
    y = (x + (formula(stored, ACROSS) - stored)) @ rounded.T
    for_w = formula(stored, DOWN) @ w.T
    y.register_hook(lambda grad: formula(grad, ACROSS)) if y.requires_grad else None
    for_w.register_hook(lambda grad: formula(grad, DOWN))
    return y + (for_w - for_w.detach())


def model(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, ids: Tensor, low: torch.dtype) -> Tensor:
    """All in fp64; `low` is the dtype between the matmuls, which rounds what goes back there too."""

    def between(t: Tensor) -> Tensor:
        return t.to(low).double()

    def stored(w: Tensor) -> Tensor:
        return w.double() + (between(w) - w).detach()

    y, x = x.new_zeros(len(x), H).double(), x.double()
    for expert in range(E):
        tokens, slots = (ids == expert).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        hidden = between(quantised_linear(x[tokens], stored(w13[expert].flatten(0, 1))))
        gate, up = hidden.chunk(2, dim=-1)
        act = between(gate * torch.sigmoid(gate) * up * weights[tokens, slots, None].double())
        y = y.index_add(0, tokens, quantised_linear(act, stored(w2[expert])))
    return y.to(low)


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Nearly all numbers are the same but for fp32's rounding. Of one at a tie, fp32 and fp64 may see
    different sides; wherever a formula differs, most numbers do."""
    assert_close(found, expected, bound)
    for name in expected:
        wanted = expected[name].double()
        off = (found[name].double() - wanted).abs() > 1e-4 * wanted.abs() + 1e-6 * wanted.abs().mean()
        assert off.float().mean() < (0.02 if found[name].dtype == torch.float32 else 0.2), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_output_and_gradients_are_those_of_the_formulas(routing, dtype):
    ids = ROUTINGS[routing]
    leaves, exact = leaves_of(ids, dtype), leaves_of(ids, dtype)
    y = Fp8Reference()(*leaves.values(), RowOrder(ids, E))
    found = with_gradients(y, leaves, gradient_of(y))
    expected = with_gradients(model(**exact, ids=ids, low=dtype), exact, gradient_of(y))
    assert [t.dtype for t in found.values()] == [dtype, dtype, torch.float32, torch.float32, torch.float32]
    for expert in set(range(E)) - set(ids.flatten().tolist()):
        assert not found["w13"][expert].any()
        assert not found["w2"][expert].any()
    assert_alike(found, expected, 1e-3)


def test_fp8_costs_a_few_per_cent_and_no_more():
    ids = ROUTINGS["two of five"]
    order, results = RowOrder(ids, E), []
    for run in (Fp8Reference(), loop):
        leaves = leaves_of(ids, powers=0.0)
        y = run(*leaves.values(), order)
        results.append(with_gradients(y, leaves, gradient_of(y, powers=0.0)))
    for name, expected in results[1].items():
        assert 5e-3 < relative(results[0][name], expected) < 8e-2, name


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of matrices that each call has cut into 128 x 128."""
    calls, square = [], fp8_reference.square
    monkeypatch.setattr(fp8_reference, "square", lambda w: calls.append(len(w)) or square(w))
    return calls


def test_held_weights_are_quantised_once_and_dropped_afterwards(squares):
    ids, backend = ROUTINGS["two of five"], Fp8Reference()
    leaves, order = leaves_of(ids), RowOrder(ids, E)
    assert isinstance(backend, QuantizedBackend)

    def run() -> dict[str, Tensor]:
        y = backend(*leaves.values(), order)
        return with_gradients(y, leaves, gradient_of(y))

    first = run()
    run()
    assert squares == [E] * 4  # w13 and w2, at each use
    backend.hold_weights(True)
    held = run()
    with torch.no_grad():
        leaves["w13"].mul_(1.5)  # not allowed while weights are held; it shows that they are
    still = run()
    assert squares == [E] * 6
    for name in first:
        assert torch.equal(held[name], first[name])
        assert torch.equal(still[name], first[name])
    backend.hold_weights(False)
    assert not torch.equal(run()["y"], first["y"])
    assert squares == [E] * 8
    backend.hold_weights(True)
    run()
    assert squares == [E] * 10  # nothing was left of what had been held


def test_the_order_of_the_slots_decides_and_every_run_is_bitwise_the_same():
    """Three experts alike, weighted 2^27, -2^27 and 1: only in that order is the last one not lost in fp32."""
    ids = torch.tensor([[0, 2, 1]] * 140)
    leaves = leaves_of(ids)
    with torch.no_grad():
        for weight in (leaves["w13"], leaves["w2"]):
            weight.copy_(weight[:1].expand_as(weight).clone())
        leaves["weights"].copy_(torch.tensor([2.0**27, -(2.0**27), 1.0]))
    runs = []
    for _ in range(2):
        y = Fp8Reference()(*leaves.values(), RowOrder(ids, E, by_slot=True))
        runs.append(with_gradients(y, leaves, gradient_of(y)))
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name])
    alone = leaves | {"weights": torch.ones(140, 1)}
    assert torch.equal(runs[0]["y"], Fp8Reference()(*alone.values(), RowOrder(ids[:, 2:], E)))


def test_a_gradient_that_is_an_expanded_view():
    """The gradient that `y.sum().backward()` sends: one number in place of a tensor."""
    ids = ROUTINGS["two of five"]
    leaves = leaves_of(ids)
    y = Fp8Reference()(*leaves.values(), RowOrder(ids, E))
    dense = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y), retain_graph=True)
    for found, expected in zip(torch.autograd.grad(y.sum(), list(leaves.values())), dense, strict=True):
        assert torch.equal(found, expected)


def test_a_rank_that_no_token_came_to():
    ids = torch.zeros(0, 2, dtype=torch.int64)
    leaves = leaves_of(ids)
    found = with_gradients(Fp8Reference()(*leaves.values(), RowOrder(ids, E)), leaves, torch.zeros(0, H))
    assert found["y"].shape == (0, H)
    assert not any(tensor.any() for tensor in found.values())


@pytest.mark.parametrize("cut", ["experts", "width"])
def test_what_two_ranks_do_to_parts_of_the_experts_is_what_one_does(cut):
    """Sums add up and gradients stand side by side, where each rank has some experts, or whole tiles of each one's
    width. Slot s is an expert of group s, as expert parallelism has it."""
    width, groups = 256, [0, 2]
    ids = torch.cat([ids_of(300, 1, [first, first + 1]) for first in groups], dim=1)
    leaves = {
        "x": spread(300, H, seed=1, powers=3.0), "weights": normal(300, 2, seed=2).exp(),
        "w13": spread(4 * 2 * width, H, seed=3, powers=2.0).view(4, 2, width, H) / (20 * H),
        "w2": spread(4 * H, width, seed=4, powers=3.0).view(4, H, width) / width**0.5,
    }  # fmt: skip
    dy = gradient_of(leaves["x"])

    def run(ids: Tensor, experts: int, given: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
        return with_gradients(Fp8Reference()(*given.values(), RowOrder(ids, experts)), given, dy)

    ranks = []
    for rank, first in enumerate(groups):
        slots, experts, part = slice(None), slice(None), slice(None)
        if cut == "experts":
            slots, experts = slice(rank, rank + 1), slice(first, first + 2)
        else:
            part = slice(rank * 128, rank * 128 + 128)
        mine = {"w13": leaves["w13"][experts, :, part], "w2": leaves["w2"][experts, :, part]}
        given = {"x": leaves["x"], "weights": leaves["weights"][:, slots], **mine}
        ranks.append(run(ids[:, slots] - (experts.start or 0), len(mine["w2"]), given))
    side = {"w13": 0 if cut == "experts" else 2, "w2": 0 if cut == "experts" else 2}
    side |= {"weights": 1} if cut == "experts" else {}
    found = {
        name: torch.cat([r[name] for r in ranks], side[name]) if name in side else ranks[0][name] + ranks[1][name]
        for name in ranks[0]
    }
    assert_alike(found, run(ids, 4, leaves), 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_the_same(dtype):
    ids = ROUTINGS["two of five"]
    results = []
    for device in ("cpu", "cuda"):
        leaves = {name: t.detach().to(device).requires_grad_() for name, t in leaves_of(ids, dtype).items()}
        y = Fp8Reference()(*leaves.values(), RowOrder(ids.to(device), E))
        found = with_gradients(y, leaves, gradient_of(y).to(device))
        results.append({name: tensor.cpu() for name, tensor in found.items()})
    # In bf16 a number at a tie on one of them moves by a 2^-8 of itself.
    assert_alike(results[1], results[0], 1e-3 if dtype == torch.float32 else 5e-3)


# Experts have more rows than a tile is high.
CASE = Case(4, 4, experts=8, tokens=200, hidden=160, width=72)


def wide_tokens(ranks: int) -> tuple[Tensor, Tensor]:
    x = spread(ranks * CASE.tokens, CASE.hidden, seed=1, powers=3.0)
    return x, gradient_of(x)


def layer(placement: Placement, rank: int, dispatcher: Dispatcher, x: Tensor, dy: Tensor) -> Tensors:
    moe = build_layer(CASE, placement, rank, dispatcher, torch.float32)
    moe.experts.backend = Fp8Reference()
    with torch.no_grad():
        moe.router.weight.mul_(2.0**-16)  # else the largest numbers of x alone decided
        moe.experts.w13.div_(20 * CASE.hidden**0.5)
        moe.experts.w2.mul_(2.0 ** (3.0 * (normal(CASE.hidden, 1, seed=4) + normal(1, CASE.width, seed=5))))
    return run_layer(moe, x, dy)


def layers_on_rank() -> list[Tensors]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    placement = map_groups(CASE.groups, ranks)
    x, dy = (t.chunk(ranks)[rank] for t in wide_tokens(ranks))
    dispatchers = [
        AllGatherDispatch(dist.group.WORLD, placement),
        AllGatherDispatch(dist.group.WORLD, placement, regather=True),
        AllToAllDispatch(dist.group.WORLD),
    ]
    return [layer(placement, rank, dispatcher, x, dy) for dispatcher in dispatchers]


@pytest.mark.parametrize("ranks", [2, 4])
def test_expert_parallel_ranks_cut_the_same_tiles_as_one_process(ranks):
    """An expert's rows are in the order of the tokens of all ranks, so that its tiles are the same rows."""
    x, dy = wide_tokens(ranks)
    expected = layer(Placement(), 0, LocalDispatch(), x, dy)
    by_rank = on_ranks(ranks, layers_on_rank, init=True)
    for number in range(3):
        found = joined([results[number] for results in by_rank], map_groups(CASE.groups, ranks))
        assert_alike(found._asdict(), expected._asdict(), 1e-3)
