"""Selection with its ties, replayed ids, the router's statistics, and gradients through the whole MoE block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.trainer.model.tiny import model_config, relative
from trainer.model.moe import MoE
from trainer.model.numerics import select_experts
from trainer.model.router import Router

# (router groups, experts per token): G = 1; K/G = 1, the argmax path; K/G > 1, the sorting path.
SHAPES = [(1, 1), (1, 4), (4, 4), (2, 4), (2, 6), (4, 12)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def router(groups: int = 2, k: int = 4, experts: int = 12, hidden: int = 24, **options: str) -> Router:
    cfg = model_config(router_groups=groups, experts_per_token=k, num_experts=experts, hidden_size=hidden, **options)
    made = Router(cfg).double()
    with torch.no_grad():
        made.weight.copy_(normal(experts, hidden, seed=1))
    return made


def selected_by_hand(logits: Tensor, groups: int, k: int) -> Tensor:
    n = logits.shape[1] // groups
    rows = []
    for row in logits.tolist():
        ids: list[int] = []
        for first in range(0, len(row), n):
            ids += sorted(range(first, first + n), key=lambda e: (-row[e], e))[: k // groups]
        rows.append(ids)
    return torch.tensor(rows)


@pytest.mark.parametrize(("groups", "k"), SHAPES)
def test_ties_go_to_the_lowest_index(groups, k):
    generator = torch.Generator().manual_seed(groups)
    few_values = torch.randint(-1, 2, (200, 12), generator=generator).float()
    signed_zeros = torch.randint(0, 2, (20, 12), generator=generator).float().sub(1.0).mul(0.0)  # -0.0 equals 0.0
    distinct = torch.randn(50, 12, generator=generator)
    for logits in (few_values, signed_zeros, distinct, few_values[:1], few_values.double()):
        assert torch.equal(select_experts(logits, groups, k), selected_by_hand(logits, groups, k))


@pytest.mark.parametrize(("groups", "k"), [(1, 8), (8, 8), (8, 16)])
def test_ties_in_rows_as_wide_as_the_real_ones(groups, k):
    """Vectorised and threaded kernels break ties in their own ways only on wide rows."""
    equal = torch.zeros(64, 512)
    assert torch.equal(select_experts(equal, groups, k), selected_by_hand(equal[:1], groups, k).expand(64, -1))
    some = torch.randint(0, 3, (64, 512), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(select_experts(some, groups, k), selected_by_hand(some, groups, k))


@pytest.mark.parametrize(("groups", "k"), SHAPES)
def test_router_selects_by_its_logits(groups, k):
    made, x = router(groups, k), normal(9, 24)
    ids, weights, stats = made(x)
    z = x @ made.weight.T
    assert torch.equal(ids, selected_by_hand(z, groups, k))
    p = torch.softmax(z, dim=-1).gather(1, ids)
    assert relative(weights, p / p.sum(1, keepdim=True)) <= 1e-14
    assert stats.counts.tolist() == [float((ids == e).sum()) for e in range(12)]
    assert relative(stats.log_z_squared, (z.exp().sum(1).log() ** 2).sum()) <= 1e-13
    assert stats.tokens == 9
    with torch.no_grad():
        made.weight.zero_()
    assert torch.equal(made(x)[0], selected_by_hand(torch.zeros(9, 12), groups, k))


@pytest.mark.parametrize("balance", ["group", "global"])
def test_probabilities_are_summed_over_tokens_within_a_group_or_all(balance):
    made, x = router(groups=3, k=3, balance=balance), normal(7, 24)
    z = x @ made.weight.T
    groups = 3 if balance == "group" else 1
    p = torch.cat([torch.softmax(part, dim=-1) for part in z.chunk(groups, dim=1)], dim=1)
    assert relative(made(x)[2].probabilities, p.sum(0)) <= 1e-14
    assert not made(x)[2].counts.requires_grad


def test_replayed_ids_are_only_weighed():
    made, x = router(groups=2, k=4), normal(5, 24)
    own = made(x)[0]
    replayed = own.flip(0)[:, [1, 0, 3, 2]]  # another token's experts, in another order
    assert not torch.equal(replayed.sort(1).values, own.sort(1).values)
    ids, weights, stats = made(x, replayed)
    assert torch.equal(ids, replayed)
    p = torch.softmax(x @ made.weight.T, dim=-1).gather(1, replayed)
    assert relative(weights, p / p.sum(1, keepdim=True)) <= 1e-14
    assert stats.counts.tolist() == [float((replayed == e).sum()) for e in range(12)]
    (grad,) = torch.autograd.grad(weights[:, 0].sum(), made.weight)
    assert grad.any()
    for again, first in zip(made(x, own)[:2], made(x)[:2], strict=True):
        assert torch.equal(again, first)


@pytest.mark.parametrize("backend", ["grouped_mm", "loop"])
@pytest.mark.parametrize("gradient", ["ste", "conventional"])
@pytest.mark.parametrize(("groups", "k"), [(4, 4), (2, 4), (1, 4)])
def test_router_gradient_of_a_whole_block(groups, k, gradient, backend):
    """With s_i = <dL/dy, expert_i(x)> of the closed form from experts evaluated one by one; dL/dW = dL/dz^T x."""
    tau = 2.0
    cfg = model_config(
        router_groups=groups, experts_per_token=k, router_gradient=gradient, router_temperature=tau,
        expert_backend=backend,
    )  # fmt: skip
    moe = MoE(cfg).double()
    with torch.no_grad():
        for seed, parameter in enumerate(moe.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=seed))
    x, upstream = normal(6, cfg.hidden_size, seed=8), normal(6, cfg.hidden_size, seed=9)
    y, _ = moe(x)
    (found,) = torch.autograd.grad((y * upstream).sum(), moe.router.weight)

    z = x @ moe.router.weight.detach().T
    selected = torch.zeros_like(z).scatter_(1, selected_by_hand(z, groups, k), 1.0)
    w13, w2 = moe.experts.w13.detach(), moe.experts.w2.detach()
    gate, up = (torch.einsum("th,eih->tei", x, w) for w in w13.unbind(1))
    outputs_TEH = torch.einsum("tei,ehi->teh", gate * torch.sigmoid(gate) * up, w2)
    s_TE = torch.einsum("teh,th->te", outputs_TEH, upstream)
    weights_TE = torch.softmax(z, dim=-1) * selected
    weights_TE /= weights_TE.sum(1, keepdim=True)
    assert relative(y, torch.einsum("te,teh->th", weights_TE, outputs_TEH)) <= 1e-13

    if gradient == "ste":
        p = torch.softmax(z / tau, dim=-1)
        dz = p * (selected * s_TE - (selected * p * s_TE).sum(1, keepdim=True)) / tau
    else:
        dz = weights_TE * (s_TE - (weights_TE * s_TE).sum(1, keepdim=True))
    assert relative(found, dz.T @ x) <= 1e-12
