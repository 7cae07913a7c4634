"""Held-out measurements by source. They draw no random numbers and leave the state of the run as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.layout import ALONE, Place
from parallel.world import World
from trainer.config.model import ModelConfig
from trainer.data.batch import Batch, LateBatch
from trainer.data.media.placed import alike, placed
from trainer.data.protocols import Data, HeldOut
from trainer.objectives.base import Objective
from trainer.objectives.retrieval import Rows, recalls, zero_shot
from trainer.stages.forward import Forward, own_parts


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
    report: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float | None]]:
    """The objective's held-out scalars on fixed windows of each source: name -> source -> mean over all units, or None
    for a source that has none.

    batches: micro-batches of `micro_batch` windows for each rank that reads samples, whose `place` that is. Collective;
    the result is the same on all ranks. report: receives, on all ranks alike, a line for each window or document that
    could not be read.
    """
    faults: list[str] = []
    sums: dict[tuple[str, str], _Sums] = {}  # by (name, source)
    for source in heldout.sources:
        for batch, counts in turns(heldout.batches(source, batches * place.readers, micro_batch), place):
            world.watch.tick()
            faults += batch.faults if counts and place.counts else ()
            if not objective.embeds_pairs:
                batch = together(batch, forward.cfg, world)
            (batch,), _ = own_parts(forward, [batch])
            batch = batch.to(forward.device)
            hidden = forward(objective.inputs(batch))
            if hidden is None:
                continue  # another stage has the result
            for name, scalar in objective.measure(*hidden, batch).items():
                total = sums.setdefault((name, source), _Sums.zero(world.device))
                if counts:
                    total.value.add_(scalar.value)
                    total.normaliser.add_(scalar.normaliser)
    if report is not None:
        for line in (line for of_rank in world.gather(faults) for line in of_rank):
            report(line)
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


@torch.no_grad()
def measure_pairs(
    forward: Forward, objective: Objective, data: Data, world: World, place: Place, *, pairs: int, micro_batch: int
) -> dict[str, dict[str, float | None]]:
    """`image_to_text_r1`, `image_to_text_r5`, `text_to_image_r1`, `text_to_image_r5` of each source, among its held-out
    pairs; and `zero_shot`, the share of images whose class is the nearest, of each set of `data.zero_shot`.

    pairs: the most of each source and set, whatever the number of ranks. The other arguments as for `evaluate`.
    Collective; rank 0 computes, and the result is the same on all ranks.
    """
    found: dict[str, dict[str, float | None]] = {}

    def rows_of(heldout: HeldOut) -> Iterator[tuple[str, Rows]]:
        for source in heldout.sources:
            mine: list[Rows] = []
            for batch, counts in turns(heldout.batches(source, -(-pairs // micro_batch), micro_batch), place):
                world.watch.tick()
                (part,), _ = own_parts(forward, [batch])
                moved = part.to(forward.device)
                result = forward(objective.inputs(moved))
                if result is not None and counts:
                    unit = F.normalize(result.hidden.float(), dim=-1).cpu()
                    mine.append(Rows(unit, batch.inputs["hashes"].cpu(), batch.inputs["classes"].cpu()))
            of_all = [rows for of_rank in world.gather(mine) for rows in of_rank]
            parts = list(zip(*of_all, strict=True))
            yield source, Rows(torch.cat(parts[0], 1), torch.cat(parts[1]), torch.cat(parts[2]))

    for source, rows in rows_of(data.heldout):
        for name, value in recalls(rows).items() if world.rank == 0 else ():
            found.setdefault(name, {})[source] = value
    if data.zero_shot is not None:
        of_sets = {name: zero_shot(rows) if world.rank == 0 else None for name, rows in rows_of(data.zero_shot)}
        found["zero_shot"] = of_sets
    return world.broadcast(found)


def together(batch: Batch, model: ModelConfig, world: World) -> Batch:
    """The batch of this rank's turn with its media in place, and with blank ones where only other ranks have some.
    Collective. Raises DataError as `placed`."""
    batch = placed(batch, model)
    if batch.media is None:
        return batch
    images, signals = batch.media.images is not None, bool(batch.media.signals)
    have = world.sum_counts(images=images, signals=signals)
    return alike(batch, model, images=have["images"] > 0, signals=have["signals"] > 0)


def turns(batches: Iterable[Batch | LateBatch], place: Place) -> Iterator[tuple[Batch, bool]]:
    """This rank's forward passes, and whether each one counts. A rank reads no batch of another.

    Sharded weights need every rank in every turn, with batches of one shape: batches that do not fill a turn are run by
    all ranks and counted by the first.
    """
    whole: list[Batch | LateBatch] = []
    rest: list[Batch | LateBatch] = []
    size: int | None = None
    for batch in batches:
        size = len(batch.samples) if size is None else size
        (whole if len(batch.samples) == size else rest).append(batch)
        if len(whole) == place.readers:
            yield _read(whole[place.reader]), True
            whole = []
    for batch in whole + rest:
        yield _read(batch), place.reader == 0


def _read(batch: Batch | LateBatch) -> Batch:
    return batch if isinstance(batch, Batch) else batch.read()
