"""What a configuration says about ranks: the axes, where experts live, and which dispatcher brings tokens to them.

No torch here: `validate` asks before any process starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from parallel.groups import Placement, map_groups
from parallel.layout import Layout
from trainer.config.coerce import one_of
from trainer.model.experts.te.support import RECIPES

if TYPE_CHECKING:
    from trainer.config.keys import Config, ParallelConfig
    from trainer.config.model import ModelConfig

DispatchName = Literal["local", "all_gather", "all_to_all"]


@dataclass(frozen=True)
class Plan:
    layout: Layout
    placement: Placement
    dispatch: DispatchName


def plan(parallel: ParallelConfig, model: ModelConfig, world_size: int) -> Plan:
    """Raises ValueError, naming a key and the values that work, where the axes or the experts do not fit."""
    ranks = parallel.dp_shard or world_size // max(1, parallel.dp_replicate)
    # One router group has no groups to map: its experts are spread whole, and counts have to be exchanged.
    counts = parallel.dispatch == "all_to_all" or (parallel.dispatch == "auto" and model.router_groups == 1)
    ep = parallel.ep or math.gcd(ranks, model.num_experts if counts else model.router_groups)
    layout = Layout.resolve(world_size, dp_replicate=parallel.dp_replicate, dp_shard=parallel.dp_shard, ep=ep)
    if ep == 1:
        return Plan(layout, Placement(), "local")
    if counts:
        if model.num_experts % ep:
            fit = [n for n in range(1, layout.shard + 1) if layout.shard % n == 0 and model.num_experts % n == 0]
            raise ValueError(
                f"parallel.ep={ep} does not divide model.num_experts={model.num_experts}; use parallel.ep={one_of(fit)}"
            )
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


def without_effect(cfg: Config, chosen: Plan) -> list[str]:
    """Options that are set and change nothing in this layout, each in a line that says why, for a warning."""
    p, q, found = cfg.parallel, cfg.precision, []

    def idle(option: str, why: str) -> None:
        found.append(f"{option} has no effect here, as {why}")

    if chosen.dispatch == "local":
        why = "each rank has all experts"
        if p.overlap > 1:
            idle(f"parallel.overlap={p.overlap}", why)
        if p.regather:
            idle("parallel.regather=true", why)
        if q.payload != q.linears:
            idle(f"precision.payload={q.payload}", why)
    elif q.experts in RECIPES and p.regather:
        idle("parallel.regather=true", "Transformer Engine keeps quantised rows of its own")
    if q.experts not in ("fp32", "bf16") and cfg.model.expert_backend != "grouped_mm":
        idle(f"model.expert_backend={cfg.model.expert_backend}", f"precision.experts={q.experts} has its own")
    if chosen.layout.shard == 1:
        why = "no weight is sharded"
        if q.reductions != "fp32":
            idle(f"precision.reductions={q.reductions}", why)
        if p.reshard_experts:
            idle("parallel.reshard_experts=true", why)
    return found
