"""Expert parallelism over 1, 2, 4 and 8 gloo processes against a dense fp64 loop over the experts."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.dispatch.base import Dispatcher, RowOrder
from parallel.dispatch.local import LocalDispatch
from parallel.groups import Placement, map_groups
from parallel.simulate import CollectiveLog
from tests.distributed.pool import on_ranks
from tests.parallel.dispatch.moe_layer import Case, Tensors, build_layer, dense_reference, joined, run_layer, tokens_of
from tests.trainer.model.tiny import assert_close

KINDS = {
    "reduce_scatter": {"combine": "reduce_scatter"},
    "fixed_order": {"combine": "fixed_order"},
    "all_to_all": None,
    "regather": {"combine": "fixed_order", "regather": True},
    "overlap": {"combine": "reduce_scatter", "overlap": 2},
}
BOUND = {torch.float32: 2e-6, torch.float64: 1e-12}
CASES = {
    "G=8, K=8": Case(8, 8),
    "G=8, K=16": Case(8, 16),
    "G=16, K=16": Case(16, 16),
    "conventional": Case(8, 8, gradient="conventional"),
}


def placement_of(kind: str, case: Case, ep: int) -> Placement:
    return Placement(ep, 1) if kind == "all_to_all" else map_groups(case.groups, ep)


def dispatcher_of(kind: str, placement: Placement) -> Dispatcher:
    options: Any = KINDS[kind]
    if placement.ep == 1:
        return LocalDispatch()
    if options is None:
        return AllToAllDispatch(dist.group.WORLD)
    return AllGatherDispatch(dist.group.WORLD, placement, **options)


def layers_on_rank(ep: int, asked: list[tuple[str, Case, torch.dtype]]) -> list[Tensors]:
    if ep > 1:
        dist.init_process_group("gloo")
    rank, results = dist.get_rank() if ep > 1 else 0, []
    for kind, case, dtype in asked:
        placement = placement_of(kind, case, ep)
        moe = build_layer(case, placement, rank, dispatcher_of(kind, placement), dtype)
        x, dy = (t.to(dtype).chunk(ep)[rank] for t in tokens_of(case, ep))
        results.append(run_layer(moe, x, dy))
    if ep > 1:
        dist.destroy_process_group()
    return results


@cache
def reference(case: Case, ep: int) -> Tensors:
    return dense_reference(case, ep)


@pytest.mark.parametrize("ep", [1, 2, pytest.param(4, marks=pytest.mark.slow), 8])
def test_every_dispatcher_equals_the_dense_loop(ep):
    asked = [
        (kind, case, dtype)
        for kind in (KINDS if ep > 1 else ["fixed_order"])
        for case in CASES.values()
        for dtype in (torch.float32, torch.float64)
        if dtype == torch.float64 or case == CASES["G=8, K=16"]
    ]
    by_rank = on_ranks(ep, layers_on_rank, ep, asked)
    for number, (kind, case, dtype) in enumerate(asked):
        found = joined([results[number] for results in by_rank], placement_of(kind, case, ep))
        assert found.d_router.abs().sum() > 0, f"{kind}, {case}: no gradient came home to the router"
        assert_close(found._asdict(), reference(case, ep)._asdict(), BOUND[dtype])


@pytest.mark.parametrize("groups", [4, pytest.param(2, marks=pytest.mark.slow), 1])
def test_a_group_on_several_ranks_splits_the_width_of_its_experts(groups):
    case = Case(groups, 8, experts=16)
    kinds = ("reduce_scatter", "fixed_order", "all_to_all", "regather")
    asked = [(kind, case, dtype) for kind in kinds for dtype in (torch.float32, torch.float64)]
    by_rank = on_ranks(8, layers_on_rank, 8, asked)
    for number, (kind, _, dtype) in enumerate(asked):
        found = joined([results[number] for results in by_rank], placement_of(kind, case, 8))
        assert_close(found._asdict(), reference(case, 8)._asdict(), BOUND[dtype])


def rows_on_rank(cases: list[Case]) -> list[list[int]]:
    dist.init_process_group("gloo")
    rank, ranks, rows = dist.get_rank(), dist.get_world_size(), []
    for case in cases:
        placement = map_groups(case.groups, ranks)
        moe = build_layer(case, placement, rank, dispatcher_of("fixed_order", placement), torch.float32)
        run = moe.experts.forward
        seen: list[int] = []

        def counting(x: Any, weights: Any, order: RowOrder, run: Any = run, seen: Any = seen) -> Any:
            assert order.offsets[-1] == len(order.token_of_row)
            seen.append(len(order.token_of_row))
            return run(x, weights, order)

        moe.experts.forward = counting
        x, dy = (t.float().chunk(ranks)[rank] for t in tokens_of(case, ranks))
        run_layer(moe, x, dy)
        rows.append(seen)
    dist.destroy_process_group()
    return rows


@pytest.mark.parametrize("ep", [2, pytest.param(4, marks=pytest.mark.slow), 8])
def test_every_rank_has_the_same_rows_whatever_the_router_says(ep):
    cases = [
        Case(groups, 16, logits=logits)
        for groups in (16, 8, 4)
        for logits in ("random", "constant", "one-hot", "adversarial")
    ]
    for rows in on_ranks(ep, rows_on_rank, cases):
        expected = [[case.tokens * case.experts_per_token * max(1, ep // case.groups)] for case in cases]
        assert rows == expected


def unequal_tokens() -> str:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    case = Case(8, 8)
    placement = map_groups(8, 2)
    moe = build_layer(case, placement, rank, dispatcher_of("fixed_order", placement), torch.float32)
    with pytest.raises(ValueError, match="the same number") as caught:
        moe(torch.zeros(5 + rank, case.hidden))
    dist.destroy_process_group()
    return str(caught.value)


def test_unequal_numbers_of_tokens_raise_on_every_rank():
    assert (
        on_ranks(2, unequal_tokens) == ["expert-parallel ranks have [5, 6] tokens; give each rank the same number"] * 2
    )


def fixed_order_on_rank(case: Case, kind: str) -> tuple[Tensors, dict[str, Any]]:
    """The layer, and what this rank's experts made of all tokens: partial outputs and partial input gradients."""
    dist.init_process_group("gloo")
    placement, rank = map_groups(case.groups, 8), dist.get_rank()
    moe = build_layer(case, placement, rank, dispatcher_of(kind, placement), torch.float32)
    run, partial = moe.experts.forward, {}

    def recording(x: Any, weights: Any, order: RowOrder) -> Any:
        y = run(x, weights, order)
        partial["y"] = y.detach().clone()
        x.register_hook(lambda grad: partial.update(dx=grad.clone()))
        return y

    moe.experts.forward = recording
    # Without the router's own share the input gradient is that of the dispatch alone.
    x, dy = (t.float().chunk(8)[rank] for t in tokens_of(case, 8))
    ids, weights, _ = moe.router(x)
    x = x.clone().requires_grad_()
    y = moe.dispatcher(x, ids, weights.detach().requires_grad_(), case.experts, moe.experts)
    y.backward(dy)
    dist.destroy_process_group()
    return (y.detach(), x.grad), partial


@pytest.mark.parametrize("groups", [8, 4, 16])
def test_fixed_order_is_the_sum_of_the_ranks_partials_in_rank_order_bit_for_bit(groups):
    by_rank = on_ranks(8, fixed_order_on_rank, Case(groups, 16), "fixed_order")
    for index, name in enumerate(("y", "dx")):
        total = by_rank[0][1][name].clone()
        for _, partial in by_rank[1:]:
            total += partial[name]
        found = torch.cat([results[index] for results, _ in by_rank])
        assert torch.equal(found, total)


def collectives_on_rank(cases: list[Case], kind: str) -> list[list[Any]]:
    """Collectives of one forward and backward pass, after the first one, which compares the numbers of tokens."""
    placement, rank, logs = placement_of(kind, cases[0], 8), dist.get_rank(), []
    for case in cases:
        moe = build_layer(case, placement, rank, dispatcher_of(kind, placement), torch.float32)
        x, dy = (t.float().chunk(8)[rank] for t in tokens_of(case, 8))
        run_layer(moe, x, dy)
        with CollectiveLog({}) as log:
            run_layer(moe, x, dy)
        logs.append([(call.op, call.nbytes) for call in log.calls])
    return logs


@pytest.mark.parametrize(
    ("kind", "issued"),
    [
        ("fixed_order", ["all_gather", "all_to_all", "all_gather", "all_to_all"]),
        ("reduce_scatter", ["all_gather", "reduce_scatter", "all_gather", "reduce_scatter"]),
        ("regather", ["all_gather", "all_to_all", "all_gather", "all_gather", "all_to_all"]),
    ],
)
def test_four_collectives_whose_sizes_do_not_depend_on_the_router(kind, issued):
    cases = [Case(8, 8, logits=logits) for logits in ("random", "constant", "one-hot", "adversarial")]
    for by_logits in on_ranks(8, collectives_on_rank, cases, kind, init=True):
        assert [op for op, _ in by_logits[0]] == issued
        assert all(log == by_logits[0] for log in by_logits)


def ids_out_of_order() -> str:
    """Ids as a rollout might give them, of the right experts but not by group."""
    case, placement = Case(8, 8), map_groups(8, 2)
    moe = build_layer(case, placement, dist.get_rank(), dispatcher_of("fixed_order", placement), torch.float32)
    x = tokens_of(case, 1)[0].float()
    ids, _, _ = moe.router(x)
    moe(x, ids)
    with pytest.raises(RuntimeError) as caught:
        moe(x, ids.flip(1))
    return str(caught.value)


def test_replayed_ids_must_stand_in_group_order():
    for message in on_ranks(2, ids_out_of_order, init=True):
        assert "router-group order" in message
