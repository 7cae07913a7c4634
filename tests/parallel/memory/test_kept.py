"""The tensors that blocks save for backward, on the host or in FP8: results, copies and bytes."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallel.dispatch.payload import Fp8
from parallel.memory import kept
from parallel.memory.host import TO_HOST
from parallel.memory.kept import KeptActivations
from parallel.memory.live import LiveBytes
from parallel.torch_private import TorchDispatchMode

T, H, BLOCKS = 8, 128, 4
INPUT = T * H * 4  # bytes of a block's input


@pytest.fixture(autouse=True)
def copy_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "LEAST", INPUT)


class Block(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(H, H) / H**0.5)
        self.recompute = recompute

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return checkpoint(self.compute, x, table, use_reentrant=False) if self.recompute else self.compute(x, table)

    def compute(self, x: Tensor, table: Tensor) -> Tensor:
        y = (x @ self.weight).tanh()
        return x + y * y.sigmoid() * table


class CountCopies(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op is TO_HOST
        return op(*args, **(kwargs or {}))


def run(kept_as: KeptActivations | None, recompute: bool, device: str = "cpu") -> tuple[list[Tensor], int, int]:
    """Gradients of two micro-batches; copies to the host; bytes on it after a forward pass."""
    torch.manual_seed(0)
    blocks = [Block(recompute).to(device) for _ in range(BLOCKS)]
    x, table = torch.randn(T, H, device=device, requires_grad=True), torch.randn(T, H, device=device)
    if kept_as is not None:
        kept_as.wrap(blocks)
    copies, host = CountCopies(), 0
    for _ in range(2):
        with LiveBytes(torch.device(device).type) as live, copies:
            y = x
            for block in blocks:
                y = block(y, table)
            host = live.peak().host
            y.square().mean().backward()
            del y
    return [x.grad, *(block.weight.grad for block in blocks)], copies.count, host


@pytest.mark.parametrize("recompute", [False, True])
def test_what_was_on_the_host_gives_the_same_gradients(recompute):
    plain, *_ = run(None, recompute)
    found, copies, host = run(KeptActivations(payload=None, offload=True, inputs=recompute), recompute)
    assert all(map(torch.equal, found, plain))
    # An input; with all of the block its tanh, which several operators save, the sigmoid and two products with
    # neither weight nor table, which blocks share.
    assert host % INPUT == 0
    assert copies == 2 * host // INPUT
    assert host == INPUT * BLOCKS if recompute else host > INPUT * BLOCKS


def test_inputs_in_fp8_are_a_quarter_and_round_gradients():
    plain, *_ = run(None, True)
    for offload in (False, True):
        found, copies, host = run(KeptActivations(payload=Fp8(), offload=offload, inputs=True), True)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, plain, strict=True)]
        assert 1e-4 < max(errors) < 0.1
        assert (copies, host) == ((2 * BLOCKS, BLOCKS * T * (H + 8)) if offload else (0, 0))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("form", ["host", "fp8"])
def test_inputs_are_freed_once_they_are_kept_in_another_form(form, recompute):
    """After the forward pass there is none but the last one's on its way to the host, and what was given."""
    seen = []

    class Watched(Block):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            seen.append(weakref.ref(x.untyped_storage()))
            return super().forward(x, table)

    blocks = [Watched(recompute) for _ in range(BLOCKS)]
    inputs = recompute or form == "fp8"
    KeptActivations(payload=Fp8() if form == "fp8" else None, offload=form == "host", inputs=inputs).wrap(blocks)
    x, table = torch.randn(T, H), torch.randn(T, H)
    y = x
    for block in blocks:
        y = block(y, table)
    alive = [storage() is not None for storage in seen]
    assert alive == [True] + [False] * (BLOCKS - 2) + [form == "host"]
    y.sum().backward()


def test_without_gradients_nothing_is_copied():
    block = Block(recompute=False)
    KeptActivations(payload=None, offload=True, inputs=False).wrap([block])
    with torch.no_grad(), CountCopies() as copies:
        block(torch.zeros(T, H), torch.zeros(T, H))
    assert copies.count == 0


def test_a_graph_may_be_read_twice():
    blocks = [Block(recompute=False) for _ in range(2)]
    KeptActivations(payload=None, offload=True, inputs=False).wrap(blocks)
    x, table = torch.randn(T, H, requires_grad=True), torch.randn(T, H)
    loss = blocks[1](blocks[0](x, table), table).sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True])
def test_copies_on_a_stream_of_their_own_give_the_same_gradients(recompute):
    plain, *_ = run(None, recompute, "cuda")
    for _ in range(3):
        found, copies, host = run(KeptActivations(payload=None, offload=True, inputs=recompute), recompute, "cuda")
        assert all(map(torch.equal, found, plain))
        assert copies == 2 * host // INPUT
