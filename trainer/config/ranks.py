"""The ranks of a configuration: the axes, where experts are, and which dispatcher brings tokens to them.

No torch here: `validate` uses this before any process starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from parallel.errors import one_of
from parallel.groups import Placement, map_groups
from parallel.layout import Layout, LayoutError, divisors
from parallel.pipeline.cut import StageCut, cut_stages
from parallel.pipeline.plan import PipelineError, Plan
from trainer.config.errors import ConfigError
from trainer.config.keys import Config, ParallelConfig
from trainer.config.model import ModelConfig

DispatchName = Literal["local", "all_gather", "all_to_all"]


@dataclass(frozen=True)
class RankMap:
    """The ranks on their axes, the experts on their ranks, how tokens travel between them, and the pipeline."""

    layout: Layout
    placement: Placement
    dispatch: DispatchName
    plan: Plan


def map_ranks(parallel: ParallelConfig, model: ModelConfig, world_size: int) -> RankMap:
    """Divide `world_size` ranks over the axes, and the experts over the ranks.

    Raises `ConfigError` with a key and the values that work where the axes or the experts do not fit.
    """
    copies = max(1, parallel.dp_replicate) * parallel.pp
    ranks = parallel.dp_shard * parallel.cp or world_size // copies
    # A single router group cannot be mapped to ranks: its experts are spread whole, and counts have to be exchanged.
    counts = parallel.dispatch == "all_to_all" or (parallel.dispatch == "auto" and model.router_groups == 1)
    ep = parallel.ep or math.gcd(ranks, model.num_experts if counts else model.router_groups)
    try:
        layout = Layout.resolve(
            world_size,
            dp_replicate=parallel.dp_replicate,
            dp_shard=parallel.dp_shard,
            ep=ep,
            pp=parallel.pp,
            cp=parallel.cp,
        )
        plan = Plan.resolve(parallel.schedule, parallel.pp, parallel.stages_per_rank) if parallel.pp > 1 else Plan()
    except (LayoutError, PipelineError) as error:
        raise ConfigError(error.faults) from None
    if ep == 1:
        return RankMap(layout, Placement(), "local", plan)
    if counts:
        if model.num_experts % ep:
            fit = tuple(n for n in divisors(layout.shard) if model.num_experts % n == 0)
            text = f"parallel.ep={ep} must divide model.num_experts={model.num_experts}"
            raise ConfigError(f"{text}; use parallel.ep={one_of(fit)}", where="parallel.ep", value=ep, allowed=fit)
        return RankMap(layout, Placement(ep), "all_to_all", plan)
    try:
        placement = map_groups(model.router_groups, ep)
    except LayoutError as error:
        text = f"{error}, or parallel.dispatch=all_to_all"
        raise ConfigError(text, where="parallel.ep", value=ep, allowed=error.allowed) from None
    parts = placement.width_shards
    if model.expert_width % parts:
        text = (
            f"parallel.ep={ep} cuts each expert's width into {parts} parts, but model.expert_width="
            f"{model.expert_width} is not a multiple of {parts}; use parallel.ep={model.router_groups}, or "
            "parallel.dispatch=all_to_all"
        )
        raise ConfigError(text, where="parallel.ep", value=ep, allowed=(model.router_groups,))
    return RankMap(layout, placement, "all_gather", plan)


def cut_model(cfg: Config, plan: Plan) -> list[StageCut]:
    """The layers of every pipeline stage, by the FLOPs of `ModelConfig.flops_per_token`, of the towers of the first one
    and what `train.recompute=full` runs again. Raises `ConfigError` for more stages than layers."""
    model = cfg.model
    head = 6.0 * model.vocab_size * model.hidden_size
    again = 4 / 3 if cfg.train.recompute == "full" else 1.0
    layers, towers = (model.flops_per_token(cfg.data.seq_len) - head) * again, _tower_flops(cfg) * again
    head = head if cfg.train.trains_head else 0.0  # which leaves the LM head out
    try:
        return cut_stages(model.num_layers, plan, layer=layers / model.num_layers, head=head, towers=towers)
    except PipelineError as error:
        raise ConfigError(error.faults) from None


def _tower_flops(cfg: Config) -> float:
    """FLOPs of the towers for one token, if every token of a source of images or signals is one of theirs;
    without sources 1 in 16, as in synthetic data."""
    sources, flops = cfg.data.sources.values(), 0.0
    for modality, tower in (("image", cfg.model.vision), ("time_series", cfg.model.signals)):
        if tower is not None:
            found = sum(source.tokens for source in sources if source.modality == modality)
            flops += tower.flops_per_token() * (found / max(1, sum(s.tokens for s in sources)) if sources else 1 / 16)
    return flops


def most_windows(cfg: Config) -> int:
    """Windows of a step, over all ranks; in reinforcement learning the most, as if no two rollouts shared one."""
    rollouts = cfg.rl.group_size if cfg.train.objective == "policy" else 1
    return cfg.train.global_batch * rollouts
