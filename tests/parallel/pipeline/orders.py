"""The actions of torch's schedules, without its ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

from parallel.pipeline.plan import Plan
from parallel.pipeline.private import Stage
from parallel.pipeline.schedule import action_orders, build_schedule
from parallel.pipeline.timing import Action
from parallel.simulate import fake_world


def orders(plan: Plan, micro_batches: int) -> dict[int, list[Action]]:
    """As `action_orders`, for every schedule but 1F1B."""
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
        return action_orders(build_schedule(plan, stages, micro_batches))
