"""Messages between ranks, and how results are added."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dispatch.all_gather import AllGatherDispatch, _exact_terms
from parallel.dispatch.collectives import sum_in_order
from parallel.dispatch.payload import Cast, Fp8, Payload, Wire
from parallel.groups import map_groups
from tests.distributed.pool import on_ranks
from tests.parallel.dispatch.moe_layer import Case, Tensors, build_layer, dense_reference, joined, run_layer, tokens_of
from tests.trainer.model.tiny import relative


@pytest.mark.parametrize("lane", [torch.float32, torch.bfloat16, torch.uint8])
def test_parts_laid_side_by_side_come_apart_bit_for_bit(lane):
    wide = torch.randn(5, 3)
    wide[0, 0], wide[1, 1] = float("nan"), -0.0
    first = torch.randn(5, 8)
    first = first.view(lane) if lane == torch.uint8 else first.to(lane)
    parts = [first, wide, torch.arange(-5, 5, dtype=torch.int32).view(5, 2)]
    wire = Wire()
    message = wire.join(*parts)
    assert message.dtype == lane
    found = wire.split(message)
    for part, back in zip(parts, found, strict=True):
        assert back.dtype == part.dtype
        assert torch.equal(back.contiguous().view(torch.uint8), part.contiguous().view(torch.uint8))


def test_three_bf16_numbers_are_an_fp32_number():
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(10_000, generator=generator) * torch.logspace(-30, 30, 10_000)
    terms = _exact_terms(value, torch.bfloat16)
    assert {term.dtype for term in terms} == {torch.bfloat16}
    assert torch.equal(sum(term.float() for term in terms), value)


def test_ranks_are_added_in_order_and_rounded_once():
    parts = torch.tensor([[1.0], [2.0**-9], [2.0**-9], [-1.0]])
    assert sum_in_order(parts).item() == 2.0**-8
    # bf16 alone would lose both small ones
    assert sum_in_order(parts.bfloat16()).item() == 2.0**-8
    assert sum_in_order(torch.tensor([[1e8], [1.0], [-1e8]])).item() == 0.0  # 1 is lost in fp32, in this order
    assert sum_in_order(torch.tensor([[1e8], [-1e8], [1.0]])).item() == 1.0


def narrow_layers(dtype: torch.dtype, payload: Payload, combine: str) -> Tensors:
    case, placement, rank = Case(8, 8), map_groups(8, 4), dist.get_rank()
    dispatcher = AllGatherDispatch(dist.group.WORLD, placement, combine=combine, payload=payload)
    moe = build_layer(case, placement, rank, dispatcher, torch.float32)
    x, dy = (t.float().chunk(4)[rank] for t in tokens_of(case, 4))
    if dtype == torch.float32:
        return run_layer(moe, x, dy)
    # Select and weigh in fp32, so that only the exchange and the experts are in bf16.
    ids, weights, _ = moe.router(x)
    weights.retain_grad()
    low = x.to(dtype).requires_grad_()
    y = dispatcher(low, ids, weights, case.experts, moe.experts)
    y.backward(dy.to(dtype))
    return Tensors(y.detach(), low.grad, moe.router.weight.grad, moe.experts.w13.grad, moe.experts.w2.grad)


@pytest.mark.parametrize("combine", ["fixed_order", "reduce_scatter"])
@pytest.mark.parametrize(
    ("dtype", "payload"),
    [
        pytest.param(torch.float32, Cast(torch.bfloat16), marks=pytest.mark.slow),
        (torch.bfloat16, Cast()),
        (torch.float32, Fp8()),
        pytest.param(torch.bfloat16, Fp8(), marks=pytest.mark.slow),
    ],
    ids=["bf16 of fp32", "bf16", "fp8 of fp32", "fp8 of bf16"],
)
def test_a_narrower_payload_costs_its_rounding_and_no_more(dtype, payload, combine):
    found = joined(on_ranks(4, narrow_layers, dtype, payload, combine, init=True), map_groups(8, 4))
    exact = dense_reference(Case(8, 8), 4)
    bound = 0.06 if isinstance(payload, Fp8) else 0.02
    assert 1e-4 < relative(found.y, exact.y) < bound
    assert relative(found.d_w13, exact.d_w13) < 2 * bound
    if dtype == torch.float32:  # of bf16 the input gradient there is without the router's share
        assert relative(found.dx, exact.dx) < 2 * bound
    # The routing weights' gradients are not rounded to the payload on their way home.
    assert relative(found.d_router, exact.d_router) < 2 * bound


def exact_router_gradients(combine: str) -> tuple[Tensor, Tensor]:
    """Gradients of the routing weights that an expert sends home, and what came home, in bf16 hidden states."""
    placement, rank = map_groups(4, 4), dist.get_rank()
    dispatcher = AllGatherDispatch(dist.group.WORLD, placement, combine=combine)
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(6, 8, generator=generator).bfloat16()
    weights = torch.rand(6, 4, generator=generator).requires_grad_()
    sent = torch.rand(24, 1, generator=torch.Generator().manual_seed(100 + rank))

    def experts(x: Tensor, weights: Tensor, order: object) -> Tensor:
        return (x.float() * 0 + weights * sent).bfloat16()

    y = dispatcher(x, torch.arange(4).expand(6, 4), weights, 4, experts)
    y.backward(torch.eye(8)[0].expand(6, 8).bfloat16().contiguous())
    assert weights.grad is not None
    return sent, weights.grad


@pytest.mark.parametrize("combine", ["fixed_order", "reduce_scatter"])
def test_fp32_gradients_of_routing_weights_travel_beside_bf16_without_loss(combine):
    by_rank = on_ranks(4, exact_router_gradients, combine, init=True)
    for rank, (_, found) in enumerate(by_rank):
        expected = torch.cat([sent[6 * rank : 6 * rank + 6] for sent, _ in by_rank], dim=1)
        assert torch.equal(found, expected)
