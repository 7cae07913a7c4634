"""FP8 between ranks: what it loses, what it costs in bytes, and that everything else is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.base import RowOrder
from parallel.dispatch.payload import Cast, Fp8, Payload
from parallel.fp8 import fake_quantize
from parallel.groups import Placement, map_groups
from parallel.simulate import CollectiveLog
from tests.distributed.pool import on_ranks
from tests.parallel.dispatch.moe_layer import Case, Tensors, build_layer, dense_reference, joined, run_layer, tokens_of
from tests.parallel.dispatch.rounded import RoundedDispatch
from tests.trainer.model.tiny import assert_close, relative

ROW = (1, 128)
OPTIONS: dict[str, dict[str, Any]] = {
    "fixed_order": {},
    "reduce_scatter": {"combine": "reduce_scatter"},
    "regather": {"regather": True},
    "overlap": {"combine": "reduce_scatter", "overlap": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("hidden", [24, 128, 200, 1024])
def test_what_arrives_is_what_quantising_leaves(hidden, dtype):
    x = torch.randn(9, hidden, generator=torch.Generator().manual_seed(hidden))
    x = (x * torch.logspace(-3, 3, hidden)).to(dtype)
    x[4, 3], x[5] = torch.nan, 0.0
    packed = Fp8().pack(x)
    scales = -(-hidden // 128)
    assert packed.dtype == torch.uint8
    assert packed.shape == (9, -(-(hidden + scales) // 8) * 8)
    # as it comes out of a gather, beside other columns
    arrived = torch.cat([packed, packed], dim=1)[:, : packed.shape[1]]
    found = Fp8().unpack(arrived, hidden, dtype)
    assert found.dtype == dtype
    assert torch.equal(found.nan_to_num(7.0), fake_quantize(x, ROW).nan_to_num(7.0))
    assert torch.equal(Fp8().unpack(Fp8().pack(found), hidden, dtype).nan_to_num(7.0), found.nan_to_num(7.0))


def layers_on_rank(case: Case, dtype: torch.dtype) -> list[Tensors]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    placement, results = map_groups(case.groups, ranks), []
    for options in OPTIONS.values():
        dispatcher = AllGatherDispatch(dist.group.WORLD, placement, payload=Fp8(), **options)
        moe = build_layer(case, placement, rank, dispatcher, dtype)
        results.append(run_layer(moe, *(t.to(dtype).chunk(ranks)[rank] for t in tokens_of(case, ranks))))
    return results


@pytest.mark.parametrize(("groups", "ranks"), [(8, 2), (8, 8), (4, 8)], ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_ranks_lose_what_one_process_with_rounded_tokens_and_gradients_loses(groups, ranks, dtype, bound):
    case = Case(groups, 8, experts=16, hidden=200)
    whole = build_layer(case, Placement(), 0, RoundedDispatch(), dtype)
    expected = run_layer(whole, *(t.to(dtype) for t in tokens_of(case, ranks)))
    unrounded = dense_reference(case, ranks)
    by_rank = on_ranks(ranks, layers_on_rank, case, dtype, init=True)
    for number in range(len(OPTIONS)):
        found = joined([results[number] for results in by_rank], map_groups(groups, ranks))
        assert_close(found._asdict(), expected._asdict(), bound)
        for name, tensor in found._asdict().items():
            assert 5e-3 < relative(tensor, getattr(unrounded, name)) < 6e-2, name


def bytes_on_rank(case: Case, dtype: torch.dtype, payload: Payload, options: dict[str, Any]) -> list[tuple[str, int]]:
    dispatcher = AllGatherDispatch(dist.group.WORLD, map_groups(case.groups, 2), payload=payload, **options)
    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(case.tokens, case.hidden, generator=generator).to(dtype).requires_grad_()
    weights = torch.rand(case.tokens, case.experts_per_token, generator=generator, requires_grad=True)
    ids = torch.arange(case.experts_per_token).expand(case.tokens, -1)

    def experts(x: Tensor, weights: Tensor, order: RowOrder) -> Tensor:
        return x.square() * weights.sum(1, keepdim=True).to(x.dtype)

    for _ in range(2):  # the first call compares the numbers of tokens
        with CollectiveLog({}) as log:
            y = dispatcher(x, ids, weights, case.experts_per_token, experts)
            y.backward(torch.ones_like(y))
    return [(call.op, call.nbytes) for call in log.calls]


@pytest.mark.parametrize("combine", ["fixed_order", "reduce_scatter"])
def test_both_gathers_take_half_the_bytes_of_bf16_and_all_else_stays(combine):
    case, options = Case(8, 8, hidden=1024, tokens=6), {"combine": combine, "regather": True}
    tokens, routing, codes = 12, 8 * (4 + 4), 1024 + 8
    (narrow, _), (plain, _) = (
        on_ranks(2, bytes_on_rank, case, torch.bfloat16, payload, options, init=True) for payload in (Fp8(), Cast())
    )
    gathers = [nbytes for op, nbytes in narrow if op == "all_gather"]
    # to the experts, with ids and weights; in backward the gradients of results, and the tokens once more
    assert gathers == [tokens * (codes + routing), tokens * codes, tokens * codes]
    of_bf16 = [nbytes for op, nbytes in plain if op == "all_gather"]
    assert of_bf16 == [tokens * (2048 + routing), tokens * 2048, tokens * 2048]
    assert [call for call in narrow if call[0] != "all_gather"] == [call for call in plain if call[0] != "all_gather"]
    assert max(codes / 2048, (codes + routing) / (2048 + routing)) < 0.52
