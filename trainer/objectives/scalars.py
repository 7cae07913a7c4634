"""Scalars by name, each with its normaliser and the way it adds up.

scalars = objective(model, batch, whole)   # one micro-batch on one rank
engine.backward(scalars.total)             # the normalised losses, added
totals.add(scalars)                        # by name, on the device
read_totals(totals_of_steps, world)        # every log_every steps: reduce over ranks, wait for the device once
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from parallel.world import World

MicroBatches = Literal["sum", "max"]
Ranks = Literal["sum", "max", "same"]  # same: equal on every rank, so there is nothing to reduce


@dataclass(frozen=True)
class Scalar:
    """One number of one micro-batch on one rank.

    value: 0-dim on the device; a sum over tokens, pairs or layers, or a maximum. normaliser: what the sum over all
    micro-batches and ranks of the step is divided by. loss: whether training minimises it; it then carries gradients.
    per_unit: a mean over the units of the step (`Objective.count`), so that a step without any has no such number.
    micro_batches, ranks: how the normalised values of a step's micro-batches and of its ranks combine. stages: how the
    values of one micro-batch combine over the stages of a pipeline, before those of the micro-batches do.
    """

    value: Tensor
    normaliser: float | Tensor = 1
    loss: bool = False
    per_unit: bool = False
    micro_batches: MicroBatches = "sum"
    ranks: Ranks = "sum"
    stages: Literal["sum", "max"] = "sum"

    @functools.cached_property
    def normalised(self) -> Tensor:
        return self.value / self.normaliser


class Scalars(dict[str, Scalar]):
    """Scalars by their names in metrics.jsonl."""

    @property
    def total(self) -> Tensor:
        """The normalised losses, added in order (0-dim): what backward is called on."""
        return functools.reduce(operator.add, (scalar.normalised for scalar in self.values() if scalar.loss))


@dataclass(frozen=True)
class GlobalBatch:
    """The step that a micro-batch is part of.

    units: what the main loss is a mean over (`Objective.count`), of all micro-batches and ranks. micro_batches: of each
    rank. world: the ranks that run micro-batches of one shape side by side, each with its own tokens: all, or those of
    one pipeline stage.
    """

    units: int
    micro_batches: int = 1
    world: World = field(default_factory=World)


class Totals:
    """The scalars of one step on one rank, combined over its micro-batches on the device.

    units: `Objective.count` of the step over all ranks.
    """

    def __init__(self, units: int = 1) -> None:
        self.units = units
        self.without_value: set[str] = set()
        self.values: dict[str, Tensor] = {}
        self.ranks: dict[str, Ranks] = {}

    def add(self, scalars: Scalars) -> None:
        """Combine with those of the micro-batches before."""
        for name, scalar in scalars.items():
            value = scalar.normalised.detach().double()  # a step may have thousands of micro-batches and ranks
            if name in self.values:
                combine = torch.maximum if scalar.micro_batches == "max" else torch.add
                value = combine(self.values[name], value)
            self.values[name], self.ranks[name] = value, scalar.ranks
            if scalar.per_unit and not self.units:
                self.without_value.add(name)


def read_totals(steps: Sequence[Totals], world: World, *, stages: bool = False) -> list[dict[str, float | None]]:
    """The scalars of several steps over all ranks, as numbers by name. Collective; waits for the device once.

    A step has its own names, the same on every rank unless the ranks are `stages` of pipelines, which agree about them
    first; means over the units of a step without any are None. Raises ValueError for a name that combines over the
    ranks in two ways.
    """
    if not steps:
        return []
    if stages:
        _agree_names(steps, world)
    ways: dict[str, Ranks] = {}
    for step in steps:
        for name, ranks in step.ranks.items():
            way = ways.setdefault(name, ranks)
            if way != ranks:
                raise ValueError(f"{name} combines over the ranks by {way} in one step and by {ranks} in another")
    device = next(iter(steps[0].values.values())).device
    absent = torch.zeros((), dtype=torch.float64, device=device)  # reduced, then left out
    names: list[str] = []
    columns: list[Tensor] = []
    for how in ("sum", "max", "same"):
        if alike := [name for name, ranks in ways.items() if ranks == how]:
            missing = absent - torch.inf if how == "max" else absent
            table = torch.stack([torch.stack([step.values.get(name, missing) for name in alike]) for step in steps])
            if how == "sum":
                world.sum_tensor(table)
            elif how == "max":
                world.max_tensor(table)
            names += alike
            columns.append(table)
    rows = torch.cat(columns, dim=1).tolist()
    return [
        {
            name: None if name in step.without_value else number
            for name, number in zip(names, row, strict=True)
            if name in step.ranks
        }
        for step, row in zip(steps, rows, strict=True)
    ]


def _agree_names(steps: Sequence[Totals], world: World) -> None:
    """Add the names that other ranks have, in one order on all of them."""
    found = world.gather([(step.ranks, step.without_value) for step in steps])
    for number, step in enumerate(steps):
        step.ranks = {name: way for of_rank in found for name, way in of_rank[number][0].items()}
        step.without_value = {name for of_rank in found for name in of_rank[number][1]}
