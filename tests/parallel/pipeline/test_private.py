"""Canaries for the private methods of torch's pipeline stage that Octavo's overrides, and what they are for."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from parallel.pipeline.plan import Plan
from parallel.pipeline.private import OVERRIDDEN, WORKING, Stage, unavailable
from parallel.pipeline.schedule import build_schedule
from tests.distributed.pool import on_ranks

MICRO_BATCHES, SHAPE = 6, (5, 3)


def test_every_method_that_is_overridden_is_torchs_with_these_arguments():
    ours = {name for name, value in vars(Stage).items() if inspect.isfunction(value) and hasattr(PipelineStage, name)}
    assert ours - {"__init__"} == set(OVERRIDDEN)
    assert unavailable() is None


class WithoutAVote(PipelineStage):
    """As in torch 2.11."""

    _warmup_forward_vote = None


class OfOtherArguments(PipelineStage):
    def _create_grad_recv_info(self) -> Any: ...


@pytest.mark.parametrize(
    ("base", "differs"), [(WithoutAVote, "_warmup_forward_vote"), (OfOtherArguments, "_create_grad_recv_info")]
)
def test_a_torch_whose_stage_differs_is_refused(base, differs):
    fault = unavailable(base, "2.11.0")
    assert fault is not None
    assert (fault.where, fault.value, fault.allowed) == ("torch", "2.11.0", WORKING)
    assert differs in fault.text


class Scale(nn.Module):
    """A stage that multiplies, and counts the buffers, and the inputs and results of earlier passes, that exist while
    it does. For backward it keeps a copy of its input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.stage: Any = None
        self.seen: list[int] = []
        self.inputs: list[weakref.ref[Any]] = []
        self.results: list[weakref.ref[Any]] = []
        self.kept: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        expected = [*self.stage.args_recv_info.values(), *self.stage.grad_recv_info.values()]
        self.seen.append(sum(info.buffer is not None for of_batch in expected for info in of_batch))
        inputs, results = (sum(of() is not None for of in found) for found in (self.inputs, self.results))
        self.kept.append((inputs, results))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda copy: copy):
            y = x * self.factor
        self.inputs.append(weakref.ref(x.untyped_storage()))
        self.results.append(weakref.ref(y.untyped_storage()))
        return y


def buffers_in_a_step(own: bool) -> tuple[list[int], list[tuple[int, int]], float]:
    """The buffers, and the inputs and results, that exist at each forward pass of this rank's stage, and the gradient
    of its factor."""
    rank, stages, module = dist.get_rank(), dist.get_world_size(), Scale()
    travels = torch.empty(SHAPE, device="meta", requires_grad=True)
    inputs = torch.ones(MICRO_BATCHES, *SHAPE)

    def run(micro_batch: int, x: Tensor | None) -> Tensor:
        y = module(inputs[micro_batch] if x is None else x)
        return y.sum().reshape(1) if rank == stages - 1 else y

    if own:
        group: Any = dist.group.WORLD
        module.stage = stage = Stage(
            module, rank, stages, run, group=group, device=torch.device("cpu"), shape=SHAPE, dtype=torch.float32
        )
        schedule = build_schedule(Plan("1f1b", stages, 1), [stage], MICRO_BATCHES)
        schedule.step(target=torch.arange(MICRO_BATCHES), return_outputs=False)
    else:
        module.stage = PipelineStage(
            module, rank, stages, torch.device("cpu"), input_args=(travels,), output_args=(travels,)
        )
        schedule = Schedule1F1B(module.stage, MICRO_BATCHES, loss_fn=lambda y, _: y.sum(), scale_grads=False)
        given = [inputs.flatten(0, 1)] if rank == 0 else []
        schedule.step(*given, target=torch.arange(MICRO_BATCHES) if rank else None, return_outputs=False)
    assert module.factor.grad is not None
    return module.seen, module.kept, module.factor.grad.item()


@pytest.mark.parametrize("own", [True, False], ids=["ours", "torch's own"])
def test_a_stage_holds_buffers_for_what_is_in_flight_alone(own):
    """torch's own stage has them for every micro-batch, 51 GB each way in a step of the 1T recipe. A version whose own
    does not makes ours superfluous."""
    found = on_ranks(2, buffers_in_a_step, own, init=True)
    for seen, _, grad in found:
        assert len(seen) == MICRO_BATCHES  # and not once more, on memory that was never written
        assert (max(seen) <= 2) == own, seen
        assert grad == 2.0 * MICRO_BATCHES * 15


@pytest.mark.parametrize("own", [True, False], ids=["ours", "torch's own"])
def test_a_stage_forgets_what_it_has_received_and_sent(own):
    """torch's own keeps both until the backward pass: 2.1 GB each on the first of the 1T recipe's 32 stages."""
    found = on_ranks(4, buffers_in_a_step, own, init=True)
    sent = [results for _, results in found[0][1]]
    assert (max(sent) <= 2) == own, sent  # the schedule holds the last one, and the one that is being sent
    received = [inputs for inputs, _ in found[1][1]]
    assert (max(received) <= 1) == own, received
