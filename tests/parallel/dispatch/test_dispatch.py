"""(token, slot) pairs become rows sorted by expert; the local dispatcher hands them to the experts."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.base import RowOrder
from parallel.dispatch.local import LocalDispatch
from parallel.groups import Placement
from tests.distributed.pool import on_ranks


def ids_of(tokens: int, k: int, experts: int) -> Tensor:
    noise = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(tokens))
    return noise.argsort(dim=-1)[:, :k]


CASES = {
    "spread": (ids_of(9, 3, 8), 8),
    "experts without tokens": (ids_of(9, 2, 3) * 3 + 1, 10),  # 1, 4 and 7 only: none first, none last
    "all to one": (torch.full((6, 1), 2), 4),
    "one token": (torch.tensor([[3, 0, 5]]), 6),
    "one token, one slot, last expert": (torch.tensor([[5]]), 6),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_sorted_by_expert_and_keep_token_order(case):
    ids, experts = CASES[case]
    order = RowOrder(ids, experts)
    pairs = [(int(e), t, slot) for t, row in enumerate(ids) for slot, e in enumerate(row)]
    expected = sorted(pairs)
    k = ids.shape[1]
    assert order.token_of_row.tolist() == [t for _, t, _ in expected]
    assert order.slot_of_row.tolist() == [t * k + slot for _, t, slot in expected]
    assert order.offsets.tolist() == [sum(e <= expert for e, _, _ in pairs) for expert in range(experts)]
    assert order.offsets.dtype == torch.int32  # the grouped GEMM takes no other
    for row, (_, token, slot) in enumerate(expected):
        assert order.row_of_slot[token, slot] == row


def test_local_dispatch_hands_over_tokens_weights_and_order():
    ids, experts = CASES["spread"]
    x, weights = torch.randn(9, 5, requires_grad=True), torch.rand(9, 3, requires_grad=True)

    def scaled(x: Tensor, weights: Tensor, order: RowOrder) -> Tensor:
        """Expert e multiplies by e: the sum over slots of weight * e * x, made from the rows."""
        rows_of = order.offsets.diff(prepend=order.offsets.new_zeros(1))
        expert_of_row = torch.repeat_interleave(torch.arange(experts), rows_of).float()
        factor = expert_of_row[order.row_of_slot] * weights
        return x * factor.sum(1, keepdim=True)

    y = LocalDispatch()(x, ids, weights, experts, scaled)
    assert torch.allclose(y, x * (weights * ids).sum(1, keepdim=True))
    (grad,) = torch.autograd.grad(y.sum(), weights)  # routing weights go through the dispatch with their gradient
    assert torch.allclose(grad, ids * x.sum(1, keepdim=True))


@pytest.mark.parametrize("regather", [False, True])
def test_a_step_of_the_all_gather_leaves_nothing_behind(regather):
    assert on_ranks(1, ids_are_freed, regather, init=True) == [True]


def ids_are_freed(regather: bool) -> bool:
    dispatch = AllGatherDispatch(dist.group.WORLD, Placement(), regather=regather)
    x, weights, ids = torch.randn(4, 5, requires_grad=True), torch.rand(4, 2, requires_grad=True), ids_of(4, 2, 6)
    freed = weakref.ref(ids)
    y = dispatch(x, ids, weights, 6, lambda x, weights, order: x.square() * weights.sum(1, keepdim=True))
    y.sum().backward()
    del ids, y
    gc.collect()
    return freed() is None
