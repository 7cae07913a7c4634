"""Held-out measurements by source. They draw no random numbers and leave the state of the run as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.layout import ALONE, Place
from parallel.world import World
from trainer.data.batch import Batch
from trainer.data.media.placed import turn
from trainer.data.protocols import HeldOut
from trainer.objectives.base import Objective
from trainer.stages.forward import Forward


@torch.no_grad()
def evaluate(
    forward: Forward,
    objective: Objective,
    heldout: HeldOut,
    world: World,
    place: Place = ALONE,
    *,
    batches: int,
    micro_batch: int,
) -> dict[str, dict[str, float | None]]:
    """The objective's held-out scalars on fixed windows of each source: name -> source -> mean over all units, or None
    for a source that has none.

    batches: micro-batches of `micro_batch` windows for each rank that reads samples, whose `place` that is. Collective;
    the result is the same on all ranks.
    """
    sums: dict[tuple[str, str], _Sums] = {}  # by (name, source)
    for source in heldout.sources:
        # Every rank has the batches of all, so all know whether one of them has images or signals.
        read = turn(list(heldout.batches(source, batches * place.readers, micro_batch)), forward.cfg)
        for batch, counts in _turns(read, place):
            world.watch.tick()
            batch = batch.part(forward.share).to(forward.device)
            hidden = forward(objective.inputs(batch))
            if hidden is None:
                continue  # another stage has the result
            for name, scalar in objective.measure(*hidden, batch).items():
                total = sums.setdefault((name, source), _Sums.zero(world.device))
                if counts:
                    total.value.add_(scalar.value)
                    total.normaliser.add_(scalar.normaliser)
    names = next((keys for keys in world.gather(list(sums)) if keys), [])  # a stage without the head has none
    found: dict[str, dict[str, float | None]] = {name: dict.fromkeys(heldout.sources) for name, _ in names}
    if not names:
        return found
    zero = _Sums.zero(forward.device)
    table = world.sum_tensor(torch.stack([torch.stack(sums.get(key, zero)) for key in names]))
    for (name, source), (value, normaliser) in zip(names, table.tolist(), strict=True):
        found[name][source] = value / normaliser if normaliser else None
    return found


class _Sums(NamedTuple):
    """Sums over micro-batches, 0-dim in fp64 on the device."""

    value: Tensor
    normaliser: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> _Sums:
        return cls(*torch.zeros(2, dtype=torch.float64, device=device))


def _turns(batches: list[Batch], place: Place) -> Iterator[tuple[Batch, bool]]:
    """This rank's forward passes, and whether each one counts.

    Sharded weights need every rank in every turn, with batches of one shape: batches that do not fill a turn are run by
    all ranks and counted by the first.
    """
    alike = [batch for batch in batches if len(batch.samples) == len(batches[0].samples)]
    filled = len(alike) // place.readers * place.readers
    for batch in alike[place.reader : filled : place.readers]:
        yield batch, True
    for batch in alike[filled:] + batches[len(alike) :]:
        yield batch, place.reader == 0
