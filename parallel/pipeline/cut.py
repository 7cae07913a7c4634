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


def cut_stages(layers: int, plan: Plan, *, layer: float, head: float, towers: float = 0.0) -> list[StageCut]:
    """The layers of every stage of `plan`, in order; each stage has one at least.

    layer, head, towers: cost of a layer, and of what the last and the first stage have besides their layers, in any
    unit. The most expensive stage is as cheap as it can be, and of such cuts it is the most even one (least squares).
    Raises PipelineError for more stages than layers.
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
    mean = (layers * layer + head + towers) / stages
    cuts, start = [], 0
    for number, count in enumerate(_split(layers, stages, layer, head, towers)):
        cost = count * layer + (head if number == stages - 1 else 0.0) + (0.0 if number else towers)
        cuts.append(StageCut(start, start + count, cost / mean))
        start += count
    return cuts


@cache
def _split(layers: int, stages: int, layer: float, head: float, towers: float) -> tuple[int, ...]:
    """Layers of each stage. Only the ends have something besides layers, so the others are even among themselves."""
    if stages == 1:
        return (layers,)
    if towers:
        cuts = [(n, *_split(layers - n, stages - 1, layer, head, 0.0)) for n in range(1, layers - stages + 2)]

        def most(counts: tuple[int, ...]) -> tuple[float, float]:
            of_stage = [count * layer for count in counts]
            of_stage[0], of_stage[-1] = of_stage[0] + towers, of_stage[-1] + head
            return max(of_stage), sum(value * value for value in of_stage)

        return min(cuts, key=most)

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
