"""Held-out measurements by source. They draw no random numbers and leave the state of the run as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.world import World
from trainer.data.batch import Batch
from trainer.data.protocols import HeldOut
from trainer.model.decoder import Decoder
from trainer.objectives.base import Objective


@torch.no_grad()
def evaluate(
    model: Decoder, objective: Objective, heldout: HeldOut, world: World, *, batches: int, micro_batch: int
) -> dict[str, dict[str, float | None]]:
    """The objective's held-out scalars on fixed windows of each source: name -> source -> mean over all units, or None
    for a source that has none.

    batches: micro-batches of `micro_batch` windows for each rank. Collective; the result is the same on all ranks.
    """
    sums: dict[tuple[str, str], _Sums] = {}  # by (name, source)
    for source in heldout.sources:
        for batch, counts in _turns(list(heldout.batches(source, batches * world.size, micro_batch)), world):
            world.watch.tick()
            for name, scalar in objective.evaluate(model, batch.to(world.device)).items():
                total = sums.setdefault((name, source), _Sums.zero(world.device))
                if counts:
                    total.value.add_(scalar.value)
                    total.normaliser.add_(scalar.normaliser)
    found: dict[str, dict[str, float | None]] = {
        name: dict.fromkeys(heldout.sources) for name in dict.fromkeys(name for name, _ in sums)
    }
    if not sums:
        return found
    table = torch.stack([torch.stack(total) for total in sums.values()])
    world.sum_tensor(table)
    for (name, source), (value, normaliser) in zip(sums, table.tolist(), strict=True):
        found[name][source] = value / normaliser if normaliser else None
    return found


class _Sums(NamedTuple):
    """Sums over micro-batches, 0-dim in fp64 on the device."""

    value: Tensor
    normaliser: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> _Sums:
        return cls(*torch.zeros(2, dtype=torch.float64, device=device))


def _turns(batches: list[Batch], world: World) -> Iterator[tuple[Batch, bool]]:
    """This rank's forward passes, and whether each one counts.

    Sharded weights need every rank in every turn, with batches of one shape: batches that do not fill a turn are run by
    all ranks and counted by rank 0.
    """
    alike = [batch for batch in batches if len(batch.samples) == len(batches[0].samples)]
    filled = len(alike) // world.size * world.size
    for batch in alike[world.rank : filled : world.size]:
        yield batch, True
    for batch in alike[filled:] + batches[len(alike) :]:
        yield batch, world.rank == 0
