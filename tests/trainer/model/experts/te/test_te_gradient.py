"""Gradients of experts on Transformer Engine: added in place by the GEMM, or by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from parallel.sharding.fsdp import keep_gathered
from parallel.sharding.local import local_part
from tests.distributed.pool import on_ranks
from tests.trainer.model.experts.te import te_stand_in
from tests.trainer.model.experts.te.te_wiring import (
    E,
    H,
    I,
    calls,
    each_path,
    order_of,
    steps,
    tokens_of,
    weights_of,
)  # fmt: skip
from tests.trainer.model.tiny import assert_close
from trainer.model.experts.loop import loop
from trainer.model.experts.module import Experts
from trainer.model.experts.te import linear as te
from trainer.model.experts.te.gradient import stack_without_copy
from trainer.model.experts.te.linear import TransformerEngine

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@each_path
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("exact")
def test_gradients_of_micro_batches_add_up_in_place(stand_in, recompute):
    backend = TransformerEngine(stand_in)
    found = steps(backend, weights_of(torch.float32), recompute)
    expected = steps(loop, weights_of(torch.float64))
    for step in range(2):
        assert_close(found[step], expected[step], 1e-6)
    first, later = [(True, False)], [(False, True)]
    if recompute:  # runs each forward once more, without using its flags
        assert calls(backend) == (first + [(False, False)] + later * 4) * 2
    else:
        assert calls(backend) == (first + later * 2) * 2


@pytest.mark.usefixtures("exact")
def test_the_gradient_is_added_in_its_own_memory(stand_in):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    backend.hold_weights(True)
    places = []
    for _ in range(3):
        leaves = tokens_of(20, torch.float64)
        backend(*leaves.values(), *weights.values(), order_of(20)).sum().backward()
        assert weights["w13"].grad is not None
        places.append(weights["w13"].grad.data_ptr())
    assert places[0] == places[1] == places[2]


@each_path
@pytest.mark.parametrize("recompute", [False, True])
def test_autograd_takes_over_what_the_gemm_wrote(stand_in, recompute):
    """A copy would cost 5 GB more a layer of the 1T model; nor may the graph hold what autograd then lets go."""
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    backend.hold_weights(True)
    arguments = (*tokens_of(20, torch.float32).values(), *weights.values(), order_of(20))
    y = checkpoint(backend, *arguments, use_reentrant=False) if recompute else backend(*arguments)
    y.sum().backward()
    for gemm, weight in zip(backend._gemms or (), weights.values(), strict=True):
        assert weight.grad is not None
        assert [weight.grad.data_ptr()] == gemm.linear.written_to
        assert not any(hasattr(matrix, "main_grad") for call in gemm.linear.calls for matrix in call.shown)


def hooked(weight: Tensor) -> None:
    weight.register_post_accumulate_grad_hook(lambda _: None)


def taken_away(weight: Tensor) -> None:
    """As FSDP does when it has reduced it."""
    weight.grad = None


@pytest.mark.parametrize("interfere", [hooked, taken_away])
@pytest.mark.usefixtures("exact")
def test_autograd_adds_where_hooks_or_fsdp_use_the_gradient(stand_in, interfere):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    backend.hold_weights(True)
    for _ in range(3):
        backend(*tokens_of(20, torch.float64).values(), *weights.values(), order_of(20)).sum().backward()
        for weight in weights.values():
            interfere(weight)
    assert calls(backend) == [(True, False), (False, False), (False, False)]


@pytest.mark.usefixtures("exact")
def test_autograd_adds_outside_of_a_step_and_in_its_first_micro_batch(stand_in):
    """With quantised weights the GEMM would write over a gradient that is there already."""
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    for held in (False, False, True, True):
        backend.hold_weights(held)
        backend(*tokens_of(20, torch.float64).values(), *weights.values(), order_of(20)).sum().backward()
    assert calls(backend) == [(None, False), (None, False), (True, False), (False, True)]
    once = weights_of(torch.float32)
    loop(*tokens_of(20, torch.float64).values(), *once.values(), order_of(20)).sum().backward()
    assert_close(
        {name: weight.grad for name, weight in weights.items() if weight.grad is not None},
        {name: 4 * weight.grad for name, weight in once.items() if weight.grad is not None},
        1e-6,
    )


def test_autograd_adds_where_gradients_are_not_fp32(stand_in):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.bfloat16)
    backend.hold_weights(True)
    for _ in range(2):
        backend(*tokens_of(20, torch.bfloat16).values(), *weights.values(), order_of(20)).sum().backward()
    assert calls(backend) == [(True, False), (False, False)]


def test_a_gradient_that_is_replaced_before_backward_is_an_error(stand_in):
    backend, weights = TransformerEngine(stand_in), weights_of(torch.float32)
    backend.hold_weights(True)
    backend(*tokens_of(20, torch.float32).values(), *weights.values(), order_of(20)).sum().backward()
    y = backend(*tokens_of(20, torch.float32).values(), *weights.values(), order_of(20))
    assert weights["w2"].grad is not None
    weights["w2"].grad = weights["w2"].grad.clone()
    with pytest.raises(RuntimeError, match="was replaced between a forward pass and its backward pass"):
        y.sum().backward()


def spread_over_ranks() -> list[tuple[bool | None, bool]]:
    """Three micro-batches on this rank's part of parameters that two ranks share; the gradient is checked here."""
    mesh, backend = init_device_mesh("cpu", (2,)), TransformerEngine("fp8_block")
    with pytest.MonkeyPatch.context() as patch:
        te_stand_in.install(patch)
        patch.setattr(te, "GEMM_DTYPE", torch.float64)
        plain = weights_of(torch.float32)
        spread = {
            name: torch.nn.Parameter(DTensor.from_local(weight.detach().clone(), mesh, [Shard(0)], run_check=False))
            for name, weight in plain.items()
        }
        backend.hold_weights(True)
        for micro_batch in range(3):
            leaves, order = tokens_of(20, torch.float64, seed=10 * micro_batch), order_of(20, seed=micro_batch)
            backend(*leaves.values(), *map(local_part, spread.values()), order).sum().backward()
            loop(*leaves.values(), *plain.values(), order).sum().backward()
        grads = {name: parameter.grad for name, parameter in spread.items()}
        assert all(isinstance(grad, DTensor) and grad.shape[0] == 2 * E for grad in grads.values())
        parts = {name: local_part(grad) for name, grad in grads.items()}
        assert_close(parts, {name: weight.grad for name, weight in plain.items()}, 1e-6)
        return calls(backend)


def test_gradients_of_parameters_that_ranks_share_add_up_in_place():
    for seen in on_ranks(2, spread_over_ranks, init=True):
        assert seen == [(True, False), (False, True), (False, True)]


def sharded(backend: Any, reshard: bool) -> dict[str, Tensor]:
    """The gradients of this rank's shards after a step of three micro-batches under FSDP."""
    experts = Experts(E, H, I, backend)
    with torch.no_grad():
        for name, weight in weights_of(torch.float64).items():
            experts.get_parameter(name).copy_(weight)
    fully_shard(experts, reshard_after_forward=reshard, shard_placement_fn=lambda _: Shard(2))
    experts.set_gradient_divide_factor(1.0)
    experts.set_force_sum_reduction_for_comms(True)
    for micro_batch in range(3):
        leaves = tokens_of(20, torch.float64, seed=100 * dist.get_rank() + 10 * micro_batch)
        keep_gathered([experts], keep=micro_batch < 2 and not reshard)
        experts(*leaves.values(), order_of(20, seed=micro_batch)).sum().backward()
    return {name: local_part(weight.grad) for name, weight in experts.named_parameters() if weight.grad is not None}


def under_fsdp(reshard: bool) -> list[tuple[bool | None, bool]]:
    backend = TransformerEngine("fp8_block")
    with pytest.MonkeyPatch.context() as patch:
        te_stand_in.install(patch)
        patch.setattr(te, "GEMM_DTYPE", torch.float64)
        backend.hold_weights(True)
        assert_close(sharded(backend, reshard), sharded(loop, reshard), 1e-6)
        return calls(backend)


@pytest.mark.parametrize("reshard", [False, True])
def test_fsdp_gathers_weights_that_are_kept_quantised_and_reduces_gradients(reshard):
    for seen in on_ranks(2, under_fsdp, reshard, init=True):
        assert seen == [(True, False), (False, False), (False, False)]


def test_gradients_in_pieces_are_stacked():
    """Older versions make one tensor for each expert."""
    pieces = [torch.randn(3, 2) for _ in range(4)]
    assert torch.equal(stack_without_copy(pieces), torch.stack(pieces))
    whole = torch.randn(4, 3, 2)
    assert stack_without_copy(whole.unbind(0)) is whole
    assert torch.equal(stack_without_copy(whole.flip(0).unbind(0)), whole.flip(0))
    shuffled = [whole[e] for e in (1, 0, 2, 3)]
    assert torch.equal(stack_without_copy(shuffled), torch.stack(shuffled))
