"""Each expert's rows start and end at multiples of what a quantised GEMM wants, and nothing is lost on the way."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder


def ids_of(tokens: int, k: int, experts: int) -> Tensor:
    noise = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(tokens))
    return noise.argsort(dim=-1)[:, :k]


CASES = {
    "spread": (ids_of(9, 3, 8), 8),
    "experts without tokens": (ids_of(9, 2, 3) * 3 + 1, 10),
    "all to one": (torch.full((6, 1), 2), 4),
    "full tiles": (torch.arange(4).repeat_interleave(8).view(-1, 1), 4),
    "one more than full tiles": (torch.arange(4).repeat(9).view(-1, 1), 4),
    "one row for each of many": (torch.arange(6).view(3, 2), 64),
    "no tokens": (torch.zeros(0, 2, dtype=torch.int64), 3),
}


@pytest.mark.parametrize("align", [1, 4, 8, 128])
@pytest.mark.parametrize("case", CASES)
def test_every_pair_has_one_row_inside_its_experts_padded_rows(case, align):
    ids, experts = CASES[case]
    (tokens, k), order = ids.shape, PaddedOrder(RowOrder(ids, experts), align)
    counts = ids.flatten().bincount(minlength=experts).tolist()
    ends = order.offsets.tolist()
    assert order.offsets.dtype == torch.int32
    assert [end - start for start, end in pairwise([0, *ends])] == [-(-count // align) * align for count in counts]
    held = ids.numel()
    assert order.rows == max(align, align * ((held + (align - 1) * min(experts, held)) // align)) >= ends[-1]
    assert order.token_of_row.shape == order.slot_of_row.shape == (order.rows,)
    for expert, (start, end) in enumerate(pairwise([0, *ends])):
        slots = order.slot_of_row[start:end].tolist()
        count = counts[expert]
        assert slots[:count] == [s for s in range(tokens * k) if ids.flatten()[s] == expert]  # in token order
        assert slots[count:] == [-1] * (end - start - count)
    assert (order.slot_of_row[ends[-1] :] == -1).all()
    real = order.slot_of_row >= 0
    assert torch.equal(order.token_of_row[real], order.slot_of_row[real] // k)
    assert (order.token_of_row[~real] == -1).all()
    assert torch.equal(order.slot_of_row[order.row_of_slot.flatten()], torch.arange(tokens * k))


@pytest.mark.parametrize("align", [1, 4, 128])
@pytest.mark.parametrize("case", CASES)
def test_the_tail_alone_becomes_zero(case, align):
    ids, experts = CASES[case]
    order = PaddedOrder(RowOrder(ids, experts), align)
    end = int(order.offsets[-1])
    for shape in ((order.rows, 3), (order.rows,)):
        rows = torch.full(shape, torch.nan)
        rows[:end] = 7.0
        assert order.zero_tail(rows) is rows
        assert (rows[:end] == 7.0).all()
        assert (rows[end:] == 0.0).all()


@pytest.mark.parametrize("case", CASES)
def test_rows_weights_and_sums_carry_gradients_and_padding_is_zero(case):
    ids, experts = CASES[case]
    (tokens, k), order = ids.shape, PaddedOrder(RowOrder(ids, experts), 4)
    generator = torch.Generator().manual_seed(3)
    x, weights = (torch.randn(tokens, n, generator=generator, dtype=torch.float64) for n in (5, k))
    x.requires_grad_()
    weights.requires_grad_()
    padding = order.token_of_row < 0
    rows, row_weight = order.gather(x), order.gather_weights(weights)
    assert not rows[padding].any()
    assert not row_weight[padding].any()
    # expert e multiplies by e + 1, so that a row at another expert's place is seen
    factor = torch.searchsorted(order.offsets, torch.arange(order.rows), right=True).double() + 1
    y = order.combine(rows * (row_weight * factor).unsqueeze(1))
    expected = x * (weights * (ids + 1)).sum(1, keepdim=True)
    assert torch.allclose(y, expected)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    for found, wanted in zip(*(torch.autograd.grad(out, (x, weights), dy) for out in (y, expected)), strict=True):
        assert torch.allclose(found, wanted)


def test_padding_gets_no_gradient():
    order = PaddedOrder(RowOrder(CASES["spread"][0], 8), 4)
    rows = torch.zeros(order.rows, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(order.combine(rows).sum(), rows)
    assert torch.equal(grad, (order.token_of_row >= 0).float().unsqueeze(1).expand_as(grad))
