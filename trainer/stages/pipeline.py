"""One optimizer step's forward and backward through a pipeline of stages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.pipeline.plan import Plan
from parallel.pipeline.private import Stage
from parallel.pipeline.schedule import build_schedule
from parallel.sharding.fsdp import gather_weights
from parallel.world import World
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.objectives.base import Objective
from trainer.objectives.router import router_scalars
from trainer.objectives.scalars import GlobalBatch, Scalars, Totals
from trainer.stages.attach import attach_loss
from trainer.stages.forward import run_stage
from trainer.stages.tables import tables_computed_again


@dataclass
class _Step:
    """The step that runs."""

    batches: Sequence[Batch]
    whole: GlobalBatch
    number: int
    totals: Totals
    largest: dict[str, list[Tensor]] = field(default_factory=dict)  # name -> of each micro-batch, over this rank


class Pipeline:
    """This rank's stages under one of torch's schedules.

    stages: by number. alike: the ranks that hold the same stages. tokens: of a micro-batch on this rank. recompute: of
    layers, as `train.recompute`; position tables are then computed again as well.
    A step has `micro_batches` micro-batches of this size, or any other number that the schedule takes. Weights that are
    sharded are gathered when the step starts and their gradients reduced when it ends, once; or with `reduce_each` in
    every micro-batch.
    """

    def __init__(
        self,
        stages: dict[int, Decoder],
        plan: Plan,
        objective: Objective,
        *,
        alike: World,
        group: dist.ProcessGroup,
        tokens: int,
        micro_batches: int,
        recompute: str = "none",
        reduce_each: bool = False,
    ) -> None:
        self.recompute = recompute
        self.objective, self.alike, self.group, self.plan = objective, alike, group, plan
        self._running: _Step | None = None
        self.decoders = list(stages.values())
        first = self.decoders[0]
        self.stages = [
            Stage(
                decoder,
                number,
                plan.stages,
                partial(self._run, decoder),
                group=group,
                device=alike.device,
                shape=(tokens, first.cfg.hidden_size),
                dtype=first.activations,
                reduce_each=reduce_each,
            )
            for number, decoder in stages.items()
        ]
        self.micro_batches, self.schedule = micro_batches, build_schedule(plan, self.stages, micro_batches)

    def accumulate(self, batches: Sequence[Batch], units: int, *, step: int) -> Totals:
        """Forward and backward of a step's micro-batches; the arguments and the result as for `accumulate_gradients`.

        Scalars of the objective are on the ranks with the last stage, the routers' on those with their layers.
        """
        if len(batches) != self.micro_batches:  # torch's schedule is for one number of them
            if not self.plan.takes(len(batches)):
                raise ValueError(f"the schedule {self.plan.schedule} does not take {len(batches)} micro-batches")
            self.micro_batches = len(batches)
            self.schedule = build_schedule(self.plan, self.stages, self.micro_batches)
        whole = GlobalBatch(max(units, 1), len(batches), self.alike)
        self._running = running = _Step(batches, whole, step, Totals(units))
        self.alike.watch.at(f"step {step}: gather weights")
        for decoder in self.decoders:
            gather_weights(decoder)
        self.schedule.step(target=torch.arange(len(batches)), return_outputs=False)
        self._running = None
        self._add_largest(running)
        return running.totals

    def _run(self, decoder: Decoder, micro_batch: int, x: Tensor | None) -> Tensor:
        """A stage's forward pass: hidden states [T, H], or the loss [1] on the last stage."""
        running, objective = self._running, self.objective
        assert running is not None
        self.alike.watch.at(f"step {running.number}: forward and backward")
        batch = running.batches[micro_batch].to(self.alike.device)
        with nullcontext() if self.recompute == "none" else tables_computed_again(decoder.rotary):
            hidden, routing = run_stage(decoder, objective.inputs(batch), x)
        assert routing is not None  # every stage has a layer
        scalars = router_scalars(routing, decoder.cfg, running.whole)
        if decoder.span.head:
            scalars = Scalars(**objective.loss(decoder, hidden, batch, running.whole), **scalars)
        for name in [name for name, scalar in scalars.items() if scalar.stages == "max"]:
            self._note_largest(running, name, micro_batch, scalars.pop(name).normalised)
        running.totals.add(scalars)
        return scalars.total.reshape(1) + 0 if decoder.span.head else attach_loss(hidden, scalars.total)

    def _note_largest(self, running: _Step, name: str, micro_batch: int, value: Tensor) -> None:
        """Keep the larger of this rank's stages: they run a micro-batch at different times."""
        of_step = running.largest.setdefault(name, [value.new_tensor(-torch.inf)] * len(running.batches))
        of_step[micro_batch] = torch.maximum(of_step[micro_batch], value.detach())

    def _add_largest(self, running: _Step) -> None:
        """Add scalars that are maxima over the stages, on the first rank of each pipeline."""
        for name, values in running.largest.items():
            table = torch.stack(values)
            dist.all_reduce(table, dist.ReduceOp.MAX, group=self.group)
            total = table.double().sum()
            running.totals.values[name] = total if self.group.rank() == 0 else torch.zeros_like(total)
            running.totals.ranks[name] = "sum"
