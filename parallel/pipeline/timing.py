"""The time of an optimizer step in a pipeline, from the times of one stage. No torch here.

Closed forms for stages of equal times, without the time of communication. 1F1B and interleaved 1F1B are from Narayanan
et al. 2021 (arXiv:2104.04473, section 2.2): the first and the last rank are idle for p - 1 forward and backward passes
of a stage. Zero bubble is from Qi et al. 2023 (arXiv:2401.10241, section 2.3, ZB-H1): each of these waits is shorter,
because gradients of weights are computed in it. The other schedules have no closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.pipeline.plan import Plan


@dataclass(frozen=True)
class StageTimes:
    """Times of one micro-batch in one stage, in seconds or any other unit."""

    forward: float
    input_gradient: float
    weight_gradient: float

    @property
    def backward(self) -> float:
        return self.input_gradient + self.weight_gradient

    @property
    def whole(self) -> float:
        return self.forward + self.backward


def step_time(plan: Plan, micro_batches: int, times: StageTimes) -> float | None:
    """The time of a step by a closed form; None for a schedule without one. `times` are those of one stage."""
    work = micro_batches * plan.stages_per_rank * times.whole
    if plan.schedule in ("1f1b", "interleaved_1f1b"):
        return work + (plan.ranks - 1) * times.whole
    if plan.schedule == "interleaved_zero_bubble":
        return work + (plan.ranks - 1) * max(0.0, times.whole - 2 * times.weight_gradient)
    return None


def bubble_share(plan: Plan, micro_batches: int) -> float:
    """The share of a step in which a rank is idle if backward takes twice as long as forward, half of it for weights.

    From the closed form of the schedule; without one, from that of interleaved 1F1B with as many stages, which is an
    upper bound.
    """
    times = StageTimes(1.0, 1.0, 1.0)
    bound = Plan("interleaved_1f1b", plan.ranks, plan.stages_per_rank)
    whole = step_time(plan, micro_batches, times) or step_time(bound, micro_batches, times)
    assert whole is not None
    return 1.0 - micro_batches * plan.stages_per_rank * times.whole / whole
