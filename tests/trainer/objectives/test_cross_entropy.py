"""Chunked cross-entropy against torch's own on the whole logits, and its hand-written gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from parallel.memory.live import LiveBytes
from tests.trainer.model.tiny import relative
from trainer.data.batch import IGNORE
from trainer.objectives.next_token import chunked_cross_entropy

N, H, V = 12, 6, 10


def inputs(tokens: int = N, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(V, (tokens,), generator=generator)
    labels[1::4] = IGNORE
    return hidden, head, labels


@pytest.mark.parametrize("chunk", [1, 3, 5, 12, 100])
def test_equals_cross_entropy_of_all_logits(chunk):
    """Chunks that divide the tokens, that do not, and one that is larger than all."""
    hidden, head, labels = inputs()
    loss = chunked_cross_entropy(hidden, head, labels, chunk)
    expected = F.cross_entropy(hidden @ head.T, labels, ignore_index=IGNORE, reduction="sum")
    assert relative(loss, expected) <= 1e-12
    found, wanted = (torch.autograd.grad(3.0 * total, (hidden, head)) for total in (loss, expected))
    for grad, expected_grad in zip(found, wanted, strict=True):
        assert relative(grad, expected_grad) <= 1e-12
    assert not found[0][labels == IGNORE].any()


def test_gradcheck():
    hidden, head, labels = inputs()
    assert gradcheck(lambda h, w: chunked_cross_entropy(h, w, labels, 5), (hidden, head))


@pytest.mark.parametrize(
    ("hidden_dtype", "head_dtype"), [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_bf16_is_computed_in_fp32(hidden_dtype, head_dtype):
    hidden, _, labels = inputs(dtype=hidden_dtype)
    _, head, _ = inputs(dtype=head_dtype)
    loss = chunked_cross_entropy(hidden, head, labels, 4)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(hidden.double() @ head.double().T, labels, reduction="sum")
    assert relative(loss, expected) <= 1e-6
    for grad, leaf in zip(torch.autograd.grad(loss, (hidden, head)), (hidden, head), strict=True):
        assert grad.dtype == leaf.dtype


def test_many_chunks_add_up_to_the_sum_of_all():
    """4,000 chunks of one token with equal losses, which a running sum in fp32 would round alike."""
    tokens = 4_000
    with torch.no_grad():
        hidden, head = torch.ones(tokens, 1), torch.tensor([[0.1], [0.3]])
        labels = torch.zeros(tokens, dtype=torch.long)
        one = chunked_cross_entropy(hidden[:1], head, labels[:1], 1).double()
        assert chunked_cross_entropy(hidden, head, labels, 1).item() == pytest.approx(tokens * one.item(), rel=2e-7)


@pytest.mark.parametrize("chunk", [4, 5])
def test_nothing_to_learn_from_is_zero(chunk):
    hidden, head, _ = inputs()
    loss = chunked_cross_entropy(hidden, head, torch.full((N,), IGNORE), chunk)
    assert loss.item() == 0.0
    for grad in torch.autograd.grad(loss, (hidden, head)):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("label", [3, IGNORE])
def test_one_token(label):
    hidden, head, _ = inputs(tokens=1)
    loss = chunked_cross_entropy(hidden, head, torch.tensor([label]), 8)
    expected = 0.0 if label == IGNORE else -torch.log_softmax(hidden @ head.T, dim=1)[0, label].item()
    assert loss.item() == pytest.approx(expected, rel=1e-13)


def test_extreme_logits_stay_finite():
    """±1e4 in fp32: exp overflows where the maximum is not taken off first, log(0) where it is taken off late."""
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4], [0.0, -1e4]], requires_grad=True)
    head = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 2, IGNORE])
    loss = chunked_cross_entropy(hidden, head, labels, 3)
    assert loss.item() == pytest.approx(2e4)
    found = torch.autograd.grad(loss, (hidden, head))
    expected = torch.autograd.grad(F.cross_entropy(hidden @ head.T, labels, reduction="sum"), (hidden, head))
    for grad, expected_grad in zip(found, expected, strict=True):
        assert grad.isfinite().all()
        assert relative(grad, expected_grad) <= 1e-6


def test_without_gradients_only_the_loss_is_made():
    """Evaluation: same number, and no gradient of the head's size is held."""
    hidden, head, labels = inputs()
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, head, labels, 5)
    assert not loss.requires_grad
    assert torch.equal(loss, chunked_cross_entropy(hidden, head, labels, 5))


def test_only_a_chunk_of_logits_exists_at_a_time():
    """The largest tensor that any operation makes, in elements, is that of a chunk and not of all tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 4, generator=generator).requires_grad_()
    head = torch.randn(50, 4, generator=generator).requires_grad_()
    with Watch():
        chunked_cross_entropy(hidden, head, torch.randint(50, (64,), generator=generator), 8).backward()
    assert largest == 8 * 50


def test_a_frozen_head_costs_no_gradient():
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(6, 4, generator=generator), torch.randn(500, 4, generator=generator)
    labels = torch.randint(500, (6,), generator=generator)
    found, most = [], []
    for trained in (True, False):
        x, weight = hidden.clone().requires_grad_(), head.clone().requires_grad_(trained)
        with LiveBytes() as live:
            chunked_cross_entropy(x, weight, labels, 1).backward()
        assert x.grad is not None
        assert (weight.grad is not None) == trained
        found.append(x.grad)
        most.append(live.peak().total)
    assert torch.equal(*found)
    assert most[0] - most[1] >= head.nbytes
