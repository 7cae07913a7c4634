"""The sensitive operations against formulas written again here in fp64, and their hand-written gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.trainer.model.tiny import relative
from trainer.model.numerics import log_sum_exp, norm_rotary, rms_norm, router_weights


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def plain_norm_rotary(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    y = plain_rms_norm(x, weight, eps)
    half = x.shape[-1] // 2
    rotated = torch.cat([-y[..., half:], y[..., :half]], dim=-1)
    return y * torch.cat([cos, cos], dim=-1) + rotated * torch.cat([sin, sin], dim=-1)


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_rms_norm(eps):
    x, weight = normal(5, 3, 8), normal(8, seed=1)
    x[0, 0] = 0.0  # only eps keeps this row from a division by zero
    expected = plain_rms_norm(x, weight, eps)
    assert relative(rms_norm(x, weight, eps), expected) <= 1e-14
    assert relative(rms_norm(x.float(), weight.float(), eps), expected) <= 2e-7
    assert gradcheck(lambda x, w: rms_norm(x, w, 0.3), (x.requires_grad_(), weight.requires_grad_()))


# One table for all heads (RoPE), or one for each kv head (FoPE, not of unit modulus): r query heads share each of k.
@pytest.mark.parametrize(("k", "tables", "r"), [(2, 1, 3), (3, 3, 2), (3, 3, 1)])
def test_norm_rotary(k, tables, r):
    x, weight, eps = normal(4, k, r, 6), normal(6, seed=1), 0.1
    cos, sin = normal(4, tables, 1, 3, seed=2), normal(4, tables, 1, 3, seed=3)
    expected = plain_norm_rotary(x, weight, cos, sin, eps)
    assert relative(norm_rotary(x, weight, cos, sin, eps), expected) <= 1e-14
    assert relative(norm_rotary(*(t.float() for t in (x, weight, cos, sin)), eps), expected) <= 3e-7
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert gradcheck(lambda x, w: norm_rotary(x, w, cos, sin, eps), inputs)


def test_norm_rotary_of_a_strided_view_as_attention_gives_it():
    """A slice of the fused projection is not contiguous; neither need its incoming gradient be."""
    fused, weight = normal(5, 20).requires_grad_(), normal(6, seed=1)
    cos, sin = normal(5, 1, 1, 3, seed=2), normal(5, 1, 1, 3, seed=3)
    found = norm_rotary(fused[:, 4:16].unflatten(-1, (2, 1, 6)), weight, cos, sin, 1e-6)
    expected = plain_norm_rotary(fused[:, 4:16].unflatten(-1, (2, 1, 6)), weight, cos, sin, 1e-6)
    upstream = normal(2, 1, 6, 5, seed=4).permute(3, 0, 1, 2)
    grads = [torch.autograd.grad(y, fused, upstream)[0] for y in (found, expected)]
    assert relative(*grads) <= 1e-13


def test_bf16_inputs_are_computed_in_fp32_and_rounded_once():
    x, weight = normal(6, 4, 1, 64), normal(64, seed=1).float()
    cos, sin = normal(6, 4, 1, 32, seed=2).float(), normal(6, 4, 1, 32, seed=3).float()
    x16 = x.bfloat16().requires_grad_()
    cases = [
        (rms_norm(x16, weight, 1e-6), rms_norm(x16.detach().float(), weight, 1e-6)),
        (norm_rotary(x16, weight, cos, sin, 1e-6), norm_rotary(x16.detach().float(), weight, cos, sin, 1e-6)),
    ]
    for found, in_fp32 in cases:
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, in_fp32.bfloat16())
        found.float().square().sum().backward()
        assert x16.grad is not None
        assert x16.grad.dtype == torch.bfloat16


def full_softmax_weights(z: Tensor, ids: Tensor) -> Tensor:
    """As published: the softmax over all experts, gathered, renormalised."""
    chosen = torch.softmax(z, dim=-1).gather(-1, ids)
    return chosen / (chosen.sum(-1, keepdim=True) + 1e-20)


def distinct_ids(tokens: int, experts: int, k: int) -> Tensor:
    return normal(tokens, experts, seed=9).argsort(dim=-1)[:, :k]


@pytest.mark.parametrize("gradient", ["ste", "conventional"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_routing_weights_are_the_renormalised_softmax(gradient, temperature):
    """Whatever the gradient and its temperature."""
    z, ids = 3 * normal(7, 12), distinct_ids(7, 12, 4)
    expected = full_softmax_weights(z, ids)
    assert relative(router_weights(z, ids, gradient, temperature), expected) <= 1e-14
    assert relative(router_weights(z.float(), ids, gradient, temperature), expected) <= 3e-7


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_straight_through_gradient_is_the_closed_form(temperature, k):
    """dL/dz_j = p_j (1[j selected] s_j - sum over selected i of p_i s_i) / tau; p = softmax(z / tau)."""
    z, ids, s = (2 * normal(6, 9)).requires_grad_(), distinct_ids(6, 9, k), normal(6, k, seed=2)
    (found,) = torch.autograd.grad((router_weights(z, ids, "ste", temperature) * s).sum(), z)
    expected = torch.zeros_like(z)
    for t in range(6):
        exponentials = [torch.exp(logit / temperature) for logit in z[t].detach()]
        p = [e / sum(exponentials) for e in exponentials]
        score = {int(e): s[t, slot] for slot, e in enumerate(ids[t])}
        common = sum(p[e] * score[e] for e in score)
        for j in range(9):
            expected[t, j] = p[j] * (score.get(j, 0.0) - common) / temperature
    for row, expected_row in zip(found, expected, strict=True):
        assert relative(row, expected_row) <= 1e-12
    assert found.count_nonzero() == found.numel()  # every logit learns, selected or not

    p_tau = torch.softmax(z / temperature, dim=-1).gather(-1, ids)
    surrogate = full_softmax_weights(z, ids).detach() + p_tau - p_tau.detach()
    assert relative(found, torch.autograd.grad((surrogate * s).sum(), z)[0]) <= 1e-12


@pytest.mark.parametrize("k", [1, 4])
def test_conventional_gradient(k):
    """The derivative of the formula, and exactly 0, not nearly, for the logits that were not selected."""
    z, ids, s = (2 * normal(6, 9)).requires_grad_(), distinct_ids(6, 9, k), normal(6, k, seed=2)
    (found,) = torch.autograd.grad((router_weights(z, ids, "conventional", 2.0) * s).sum(), z)
    selected = torch.zeros(6, 9, dtype=torch.bool).scatter_(1, ids, True)
    assert torch.equal(found[~selected], torch.zeros_like(found[~selected]))
    if k == 1:  # one weight is always 1
        assert not found.any()
        return
    (expected,) = torch.autograd.grad((full_softmax_weights(z, ids) * s).sum(), z)
    assert relative(found, expected) <= 1e-12


def test_routing_weights_of_extreme_logits_are_finite():
    z = torch.tensor([[1e4, -1e4, 0.0, 1e4], [-1e4, -1e4, -1e4, -1e4]], requires_grad=True)
    for gradient in ("ste", "conventional"):
        weights = router_weights(z, torch.tensor([[0, 1], [2, 3]]), gradient)
        assert torch.equal(weights, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        (found,) = torch.autograd.grad((weights * torch.tensor([1.0, 2.0])).sum(), z)
        assert found.isfinite().all()


def test_the_normaliser_of_a_row_has_the_same_bits_alone():
    """torch divides one long row among threads and adds up its parts in another order."""
    logits = normal(60, 65_536).float()  # of these rows torch's own function gives two other bits alone, on an EPYC
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        beside = log_sum_exp(logits)
        assert torch.equal(torch.cat([log_sum_exp(row) for row in logits.split(1)]), beside)
    finally:
        torch.set_num_threads(before)
    assert relative(beside, logits.double().exp().sum(-1).log()) <= 2e-7
    assert log_sum_exp(logits[:0]).shape == (0,)
