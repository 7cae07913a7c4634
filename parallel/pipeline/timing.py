"""The time of an optimizer step in a pipeline, from the times of one stage. No torch here.

Closed forms for stages of equal times, messages counted as free: 1F1B and interleaved 1F1B from Narayanan et al. 2021
(arXiv:2104.04473, section 2.2), where the first and the last rank wait (p - 1) forward and backward passes of a stage;
zero bubble from Qi et al. 2023 (arXiv:2401.10241, section 2.3, ZB-H1), where each of these waits is shorter by the time
of the weights' gradients, which fill it. The other schedules have none: `makespan` follows any order of actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from parallel.pipeline.plan import Plan

# Forward; the gradient of a stage's input, of its weights, and of both at once.
Kind = Literal["F", "I", "W", "B"]


@dataclass(frozen=True)
class Action:
    """A pass of one micro-batch through one stage."""

    kind: Kind
    stage: int
    micro_batch: int


@dataclass(frozen=True)
class StageTimes:
    """Seconds, or any other unit, of one micro-batch in one stage."""

    forward: float
    input_gradient: float
    weight_gradient: float

    @property
    def backward(self) -> float:
        return self.input_gradient + self.weight_gradient

    @property
    def whole(self) -> float:
        return self.forward + self.backward

    def of(self, kind: Kind) -> float:
        """The time of an action of this kind."""
        times = {"F": self.forward, "I": self.input_gradient, "W": self.weight_gradient, "B": self.backward}
        return times[kind]


def step_time(plan: Plan, micro_batches: int, times: StageTimes) -> float | None:
    """The time of a step by a closed form; None for a schedule without one. `times` are those of one stage."""
    work = micro_batches * plan.stages_per_rank * times.whole
    if plan.schedule in ("1f1b", "interleaved_1f1b"):
        return work + (plan.ranks - 1) * times.whole
    if plan.schedule == "interleaved_zero_bubble":
        return work + (plan.ranks - 1) * max(0.0, times.whole - 2 * times.weight_gradient)
    return None


def bubble_share(plan: Plan, micro_batches: int) -> float:
    """Share of a step in which a rank waits, for a backward pass of twice the forward pass, half of it for weights.

    By the closed form; where there is none, by that of interleaved 1F1B with as many stages, which is more."""
    times = StageTimes(1.0, 1.0, 1.0)
    bound = Plan("interleaved_1f1b", plan.ranks, plan.stages_per_rank)
    whole = step_time(plan, micro_batches, times) or step_time(bound, micro_batches, times)
    assert whole is not None
    return 1.0 - micro_batches * plan.stages_per_rank * times.whole / whole


def makespan(orders: Mapping[int, Sequence[Action]], times: StageTimes, stages: int) -> float:
    """The time until every rank has done its actions, each in its order and as early as its inputs are there.

    orders: rank -> actions. Raises ValueError where an action waits for one that never comes.
    """
    ends: dict[tuple[str, int, int], float] = {}
    clocks = dict.fromkeys(orders, 0.0)
    left = {rank: list(order) for rank, order in orders.items()}
    while any(left.values()):
        moved = False
        for rank, order in left.items():
            while order and (ready := _ready(order[0], ends, stages)) is not None:
                action = order.pop(0)
                clocks[rank] = max(clocks[rank], ready) + times.of(action.kind)
                ends[_end(action)] = clocks[rank]
                moved = True
        if not moved:
            raise ValueError(
                f"the inputs of these actions never come: {[order[0] for order in left.values() if order]}"
            )
    return max(clocks.values())


def _end(action: Action) -> tuple[str, int, int]:
    """The thing that is there once the action has ended."""
    kind = {"F": "forward", "I": "gradient", "B": "gradient", "W": "weights"}[action.kind]
    return kind, action.stage, action.micro_batch


def _ready(action: Action, ends: Mapping[tuple[str, int, int], float], stages: int) -> float | None:
    """The time at which the inputs of an action are there; None if it is not known yet."""
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
