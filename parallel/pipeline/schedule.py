"""Build torch's schedule for a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch.distributed.pipelining as pipelining
from torch import Tensor

from parallel.pipeline.plan import Plan
from parallel.pipeline.private import Stage
from parallel.pipeline.timing import Action


def build_schedule(plan: Plan, stages: Sequence[Stage], micro_batches: int) -> Any:
    """A schedule of torch whose `step(target=Tensor of micro_batches)` runs one optimizer step's forward and backward.

    stages: of this rank, in order. The last stage returns losses that are already normalised, so gradients are summed
    over the micro-batches and divided by nothing.
    """
    kind = getattr(pipelining, plan.rule.torch_name)
    given: Any = stages[0] if plan.schedule == "1f1b" else list(stages)
    return kind(given, n_microbatches=micro_batches, loss_fn=_own_loss, scale_grads=False)


def action_orders(schedule: Any) -> dict[int, list[Action]]:
    """The actions of every rank of a schedule with several stages per rank, in its order."""
    return {rank: list(_flat(order)) for rank, order in schedule.pipeline_order.items()}


def _flat(order: Iterable[Any]) -> Iterator[Action]:
    for action in order:
        if action is None:  # a step that torch leaves empty
            continue
        if action.sub_actions:
            yield from _flat(action.sub_actions)
        else:
            yield Action(action.computation_type.value, action.stage_index, action.microbatch_index)  # type: ignore[arg-type]


def _own_loss(output: Tensor, _target: Tensor) -> Tensor:
    return output
