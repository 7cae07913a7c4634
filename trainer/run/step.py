"""Forward and backward of one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

from parallel.layout import ALONE, Place
from parallel.sharding.fsdp import keep_gathered, reduce_gradients
from parallel.world import World
from trainer.config.keys import Config
from trainer.config.model import ModelConfig
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.experts.held import held_weights
from trainer.model.towers.flops import tower_flops
from trainer.model.towers.places import Places
from trainer.objectives.base import Objective
from trainer.objectives.scalars import GlobalBatch, Totals
from trainer.optim.engine import Engine

MEDIA = ("images", "signals")  # of the counts of a step


def count_step(
    objective: Objective,
    batches: Sequence[Batch],
    world: World,
    place: Place = ALONE,
    *,
    model: ModelConfig | None = None,
    interrupted: bool = False,
    terminated: bool = False,
) -> dict[str, int]:
    """Counts of a step over the micro-batches of all ranks, made on the host: `units` of the objective, `tokens`,
    `faults` (samples that were replaced), `images` (or tiles) and `signals`, `tower_kiloflops` of the towers of
    `model`, and the ranks that were `interrupted` or `terminated` by a signal.

    place: of this rank; samples that several ranks read are counted once."""
    counted = batches if place.counts else ()
    return world.sum_counts(
        units=sum(objective.count(batch) for batch in counted),
        tokens=sum(batch.num_tokens for batch in counted),
        faults=sum(len(batch.faults) for batch in counted),
        images=sum(len(places.sizes) for batch in counted if (places := _places(batch, "image_places"))),
        signals=sum(len(places.sizes) for batch in counted if (places := _places(batch, "signal_places"))),
        tower_kiloflops=sum(_tower_kiloflops(batch, model) for batch in counted),
        interrupted=interrupted,
        terminated=terminated,
    )


def _places(batch: Batch, kind: str) -> Places | None:
    return None if batch.media is None else getattr(batch.media, kind)


def _tower_kiloflops(batch: Batch, model: ModelConfig | None) -> int:
    """In thousands, so that the sum of a step over thousands of ranks is far below 2^63."""
    if batch.media is None or model is None:
        return 0
    return round(tower_flops(model, batch.media.images, batch.media.signals) / 1000)


class Between(NamedTuple):
    """The parts of the state that last between the micro-batches of a step without a pipeline.

    reshard_experts: gathered experts are freed after each use. hold_experts: the quantised weights of experts in FP8
    are kept. reduce_once: sharded gradients are summed over the ranks after the last micro-batch only.
    """

    reshard_experts: bool = False
    hold_experts: bool = True
    reduce_once: bool = False

    @classmethod
    def of(cls, cfg: Config) -> Between:
        """Experts that are gathered for each use are quantised for each use as well: their FP8 copies are as large as
        the weights in bf16. Delayed scales change once for each time that weights are held, so these are held."""
        p = cfg.parallel
        hold = not p.reshard_experts or cfg.precision.experts == "fp8_delayed"
        return cls(p.reshard_experts, hold, p.reduce_every == "step")


_HELD = Between()


def accumulate_gradients(
    model: Decoder,
    engine: Engine,
    objective: Objective,
    batches: Sequence[Batch],
    units: int,
    world: World,
    *,
    step: int,
    between: Between = _HELD,
) -> Totals:
    """Forward and backward of this rank's micro-batches of a step. Nothing waits for the device.

    units: `Objective.count` of the step over all micro-batches and ranks. step: its number, for the watch.
    Returns the objective's scalars, combined over the micro-batches and not yet over the ranks.
    """
    totals = Totals(units)
    whole = GlobalBatch(max(units, 1), len(batches), world)
    experts = [layer.moe.experts for layer in model.blocks]
    with held_weights(experts) if between.hold_experts else nullcontext():
        for number, batch in enumerate(batches, 1):
            world.watch.at(f"step {step}: forward and backward")
            last = number == len(batches)
            keep_gathered(experts, keep=not last and not between.reshard_experts)
            if between.reduce_once:
                reduce_gradients(model, reduce=last)
            scalars = objective(model, batch.to(world.device), whole)
            engine.backward(scalars.total)
            totals.add(scalars)
    return totals
