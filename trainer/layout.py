"""What a configuration says about ranks: the axes, where experts live, and which dispatcher brings tokens to them.

No torch here: `validate` asks before any process starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from parallel.groups import Placement, map_groups
from parallel.layout import Layout

if TYPE_CHECKING:
    from trainer.config import ParallelConfig
    from trainer.model_config import ModelConfig

DispatchName = Literal["local", "all_gather", "all_to_all"]


@dataclass(frozen=True)
class Plan:
    layout: Layout
    placement: Placement
    dispatch: DispatchName


def plan(parallel: ParallelConfig, model: ModelConfig, world_size: int) -> Plan:
    """Raises ValueError, naming a key and the values that work, where the axes or the experts do not fit."""
    ep = parallel.ep or math.gcd(world_size // max(1, parallel.dp_replicate), model.router_groups)
    layout = Layout.resolve(world_size, dp_replicate=parallel.dp_replicate, dp_shard=parallel.dp_shard, ep=ep)
    if ep == 1:
        return Plan(layout, Placement(), "local")
    # One router group has no groups to map: its experts are spread whole, and counts have to be exchanged.
    counts = parallel.dispatch == "all_to_all" or (parallel.dispatch == "auto" and model.router_groups == 1)
    if counts:
        if model.num_experts % ep:
            raise ValueError(f"parallel.ep={ep} does not divide model.num_experts={model.num_experts}")
        return Plan(layout, Placement(ep), "all_to_all")
    try:
        placement = map_groups(model.router_groups, ep)
    except ValueError as error:
        raise ValueError(f"parallel.ep={ep}: {error}, or parallel.dispatch=all_to_all") from None
    parts = placement.width_shards
    if model.expert_width % parts:
        raise ValueError(
            f"parallel.ep={ep} cuts the width of experts {parts} ways, which does not divide model.expert_width="
            f"{model.expert_width}; use parallel.ep={model.router_groups}, or parallel.dispatch=all_to_all"
        )
    return Plan(layout, placement, "all_gather")
