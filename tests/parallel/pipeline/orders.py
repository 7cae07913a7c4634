"""The actions of torch's schedules, and the time that they take in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from parallel.pipeline.plan import Plan
from parallel.pipeline.private import Stage
from parallel.pipeline.schedule import build_schedule
from parallel.pipeline.timing import StageTimes
from parallel.simulate import fake_world

# Forward; the gradient of a stage's input, of its weights, and of both at once.
Kind = Literal["F", "I", "W", "B"]


@dataclass(frozen=True)
class Action:
    """A pass of one micro-batch through one stage."""

    kind: Kind
    stage: int
    micro_batch: int


def orders(plan: Plan, micro_batches: int) -> dict[int, list[Action]]:
    """The actions of every rank, in its order, of a schedule other than 1F1B."""
    with fake_world(plan.ranks, 0):
        group = dist.group.WORLD
        assert group is not None
        stages = [
            Stage(
                torch.nn.Linear(2, 2),
                number,
                plan.stages,
                lambda _, x: x,
                group=group,
                device=torch.device("cpu"),
                shape=(2, 2),
                dtype=torch.float32,
            )
            for number in plan.of_rank(0)
        ]
        schedule: Any = build_schedule(plan, stages, micro_batches)
        return {rank: list(_flat(order)) for rank, order in schedule.pipeline_order.items()}


def _flat(order: Iterable[Any]) -> Iterator[Action]:
    for action in order:
        if action is None:  # a step that torch leaves empty
            continue
        if action.sub_actions:
            yield from _flat(action.sub_actions)
        else:
            yield Action(action.computation_type.value, action.stage_index, action.microbatch_index)


def makespan(orders: Mapping[int, Sequence[Action]], times: StageTimes, stages: int) -> float:
    """The time until every rank has done its actions, each in its order and as early as its inputs are available.

    orders: rank -> actions. Raises ValueError where an action waits for one that never comes.
    """
    ends: dict[tuple[str, int, int], float] = {}
    clocks = dict.fromkeys(orders, 0.0)
    durations = {"F": times.forward, "I": times.input_gradient, "W": times.weight_gradient, "B": times.backward}
    left = {rank: list(order) for rank, order in orders.items()}
    while any(left.values()):
        moved = False
        for rank, order in left.items():
            while order and (ready := _ready(order[0], ends, stages)) is not None:
                action = order.pop(0)
                clocks[rank] = max(clocks[rank], ready) + durations[action.kind]
                ends[_end(action)] = clocks[rank]
                moved = True
        if not moved:
            raise ValueError(
                f"the inputs of these actions never come: {[order[0] for order in left.values() if order]}"
            )
    return max(clocks.values())


def _end(action: Action) -> tuple[str, int, int]:
    """The result that the action makes available."""
    kind = {"F": "forward", "I": "gradient", "B": "gradient", "W": "weights"}[action.kind]
    return kind, action.stage, action.micro_batch


def _ready(action: Action, ends: Mapping[tuple[str, int, int], float], stages: int) -> float | None:
    """The time at which the inputs of an action are available; None if it is unknown so far."""
    stage, micro = action.stage, action.micro_batch
    if action.kind == "F":
        needed = [("forward", stage - 1, micro)] if stage else []
    elif action.kind == "W":
        needed = [("gradient", stage, micro)]
    else:
        needed = [("forward", stage, micro)] + ([("gradient", stage + 1, micro)] if stage + 1 < stages else [])
    if any(one not in ends for one in needed):
        return None
    return max((ends[one] for one in needed), default=0.0)
