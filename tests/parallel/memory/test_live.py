"""The count of live bytes on small programs whose bytes can be said, with real and with fake tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallel.memory.live import LiveBytes
from parallel.memory.sections import Sections
from parallel.torch_private import FakeTensorMode

KB = 1024


@pytest.fixture(params=[nullcontext, FakeTensorMode], ids=["real", "fake"])
def tensors(request: pytest.FixtureRequest) -> AbstractContextManager:
    return request.param()


def kilobytes(count: int = 1) -> Tensor:
    return torch.zeros(count, KB // 4)


def now(live: LiveBytes) -> int:
    return sum(allocation.nbytes for allocation in live.allocations if allocation.died is None)


def test_a_storage_counts_once_and_until_its_last_view_is_gone(tensors):
    with tensors, LiveBytes() as live:
        x = kilobytes(4)
        view = x[1:].view(-1)
        assert now(live) == 4 * KB
        del x
        assert now(live) == 4 * KB
        del view
        assert now(live) == 0
        kilobytes(3) + 1  # six for a moment
    assert live.peak().total == 6 * KB


def test_what_was_there_before_counts_from_its_first_use(tensors):
    with tensors:
        x, other = kilobytes(2), kilobytes(5)
        with LiveBytes() as live:
            assert now(live) == 0
            x.add_(1)
            assert now(live) == 2 * KB
            live.label("weights", [x, other])
            assert now(live) == 7 * KB
    assert live.peak().weights == 7 * KB


def test_tensors_that_autograd_saves_are_live(tensors):
    with tensors, LiveBytes() as live:
        weight = kilobytes(2).requires_grad_()
        live.label("weights", [weight])
        y = (weight * 2).exp().square().sum()  # exp keeps its result, square its input: the same
        assert now(live) == (2 + 2) * KB + 4
        y.backward()
        assert weight.grad is not None
        live.label("gradients", [weight.grad])
        del y
        assert now(live) == (2 + 2) * KB
    peak = live.peak()
    assert (peak.where, peak.weights) == ("backward", 2 * KB)
    assert peak.total == live.peak("backward").total > live.peak("forward").total


class Deep(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = checkpoint(self.block, x, use_reentrant=False) if self.recompute else self.block(x)
        return x.sum()

    def block(self, x: Tensor) -> Tensor:
        return x.exp().sin().exp().sin()


def test_recomputation_is_seen(tensors):
    kept = {}
    with tensors:
        for recompute in (False, True):
            with LiveBytes() as live:
                x = kilobytes(8).requires_grad_()
                loss = Deep(recompute)(x)
                kept[recompute] = now(live)
                loss.backward()
            assert live.peak().where == "backward"
    # Beside x and the loss: the results of both exp in each of four blocks; or the inputs of the last three blocks.
    assert kept == {False: (1 + 8) * 8 * KB + 4, True: (1 + 3) * 8 * KB + 4}


def test_a_storage_that_changes_its_size(tensors):
    with tensors, LiveBytes() as live:
        x = kilobytes(3)
        x.untyped_storage().resize_(0)
        assert now(live) == 0
        x.untyped_storage().resize_(3 * KB)
        assert now(live) == 3 * KB
    assert live.peak().gathered == 3 * KB


def fail(*_: object) -> None:
    raise ZeroDivisionError


def test_torchs_method_is_in_its_place_afterwards(tensors):
    """While one context is entered twice, or another inside it, storages are followed until the last one is left."""
    own = torch.UntypedStorage.resize_
    with pytest.raises(ZeroDivisionError), LiveBytes():
        fail()
    assert torch.UntypedStorage.resize_ is own
    with tensors, LiveBytes() as live:
        x = kilobytes(3)
        for context in (live, LiveBytes()):
            with pytest.raises(ZeroDivisionError), context:
                fail()
            x.untyped_storage().resize_(0)
            assert now(live) == 0
            x.untyped_storage().resize_(3 * KB)
            assert now(live) == 3 * KB
    assert torch.UntypedStorage.resize_ is own


def test_a_context_that_cannot_be_entered_changes_nothing(monkeypatch):
    own = torch.UntypedStorage.resize_
    monkeypatch.setattr(Sections, "__enter__", fail)
    with pytest.raises(ZeroDivisionError), LiveBytes():
        pass
    assert torch.UntypedStorage.resize_ is own


def test_sections_have_their_own_peaks(tensors):
    with tensors, LiveBytes() as live:
        kept = kilobytes(1)
        with live.section("optimizer"):
            other = kilobytes(6)
        del other
        third = kept + kilobytes(2)[:1]
        del third
    assert live.peak().where == "optimizer"
    assert (live.peak("optimizer").total, live.peak("forward").total) == (7 * KB, 4 * KB)


def test_other_devices_are_the_host():
    with LiveBytes(device="cuda") as live:
        kilobytes(2)
    assert (live.peak().total, live.peak().host) == (0, 2 * KB)
