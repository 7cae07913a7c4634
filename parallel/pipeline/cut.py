"""Cut a model's layers into pipeline stages of about equal cost. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from parallel.pipeline.plan import PipelineError, Plan


@dataclass(frozen=True)
class StageCut:
    """Layers `start` to `stop`, exclusive, of one stage, and its cost, where an even share of the whole model is 1."""

    start: int
    stop: int
    cost: float


def cut_stages(layers: int, plan: Plan, *, layer: float, head: float) -> list[StageCut]:
    """The layers of every stage of `plan`, in order; each stage has one at least.

    layer, head: cost of a layer, and of what the last stage has besides its layers, in any unit. The most expensive
    stage is as cheap as it can be, and of such cuts it is the most even one (least squares). Raises PipelineError for
    more stages than layers.
    """
    stages = plan.stages
    if stages > layers:
        most = max(1, layers // plan.stages_per_rank)
        raise PipelineError(
            f"parallel.pp={plan.ranks} x {plan.stages_per_rank} stage(s) per rank are more than model.num_layers="
            f"{layers}; use parallel.pp={most} or less",
            where="parallel.pp",
            value=plan.ranks,
            allowed=tuple(range(1, most + 1)),
        )
    mean = (layers * layer + head) / stages
    cuts, start = [], 0
    for number, count in enumerate(_split(layers, stages, layer, head)):
        cost = count * layer + (head if number == stages - 1 else 0.0)
        cuts.append(StageCut(start, start + count, cost / mean))
        start += count
    return cuts


@cache
def _split(layers: int, stages: int, layer: float, head: float) -> tuple[int, ...]:
    """Layers of each stage. Only the last has something besides layers, so the others are even among themselves."""
    if stages == 1:
        return (layers,)

    def spread(last: int) -> list[int]:
        whole, more = divmod(layers - last, stages - 1)
        return [whole + 1] * more + [whole] * (stages - 1 - more) + [last]

    def cost(counts: list[int]) -> tuple[float, float]:
        of_stage = [count * layer for count in counts[:-1]] + [counts[-1] * layer + head]
        return max(of_stage), sum(value * value for value in of_stage)

    # The best last stage is near an even share, in any case within one layer of each other stage.
    even = round((layers * layer + head) / stages / layer - head / layer)
    options = range(max(1, min(even, layers) - stages), min(layers - stages + 1, max(even, 1) + stages) + 1)
    best = min((spread(last) for last in options), key=cost)
    return tuple(best)
