"""Runs in processes of their own that end at a chosen place, and what the record and the checkpoint then hold.

A place is a call of a method: a test replaces the method, in that process alone, by one that first ends the process.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.trainer.rl.toy import toy_config
from tests.trainer.tiny_run import steps
from trainer.run.checkpoints import Checkpoints
from trainer.run.process import train
from trainer.storage.boxes import full_box
from trainer.weights.opened import open_checkpoint

BATCH, STEPS = 4, 5  # questions of a step; a checkpoint after every second one


@dataclass(frozen=True)
class Place:
    """The `call`-th call of `method`, "module:Class.name", before it does anything, or after all of it. about: counts
    only calls with an argument of this text."""

    method: str
    call: int
    after: bool = False
    about: str = ""


def words(*more: str, eval_every: int = 3) -> tuple[str, ...]:
    """Overrides of the toy."""
    return (f"train.steps={STEPS}", "checkpoint.every=2", f"train.eval_every={eval_every}", *more)


def act_at(place: Place, act: Callable[[], None], put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Call `act` at the place, in this process, from now on, or as long as `put` says."""
    module, _, path = place.method.partition(":")
    name, _, attribute = path.partition(".")
    owner = getattr(importlib.import_module(module), name)
    genuine, calls = getattr(owner, attribute), iter(range(1, 1 << 30))

    def replaced(*arguments: Any, **named: Any) -> Any:
        now = place.about in str(arguments) and next(calls) == place.call
        if now and not place.after:
            act()
        found = genuine(*arguments, **named)
        if now and place.after:
            act()
        return found

    put(owner, attribute, replaced)


def waiting_for_saves() -> AbstractContextManager[Any]:
    """Every save ends before the run continues, so that it is known which checkpoint a killed run has."""
    genuine = Checkpoints.save

    def save(self: Checkpoints, position: Any, log: Any) -> None:
        genuine(self, position, log)
        self.wait(position, log)

    return patch.object(Checkpoints, "save", save)


def run_until(directory: Path, place: Place | None, number: int, given: tuple[str, ...], rank: int = 0) -> int:
    """A whole run on this process, which sends itself signal `number` at the place. Returns its exit code."""
    with waiting_for_saves():
        if place is not None and int(os.environ.get("RANK", "0")) == rank:
            act_at(place, lambda: os.kill(os.getpid(), number))
        size = int(os.environ.get("WORLD_SIZE", "1"))
        (directory.parent / "ready").touch()
        return train(toy_config(directory, *given, world_size=size))


def trained_questions(directory: Path) -> list[int]:
    """Numbers of the questions of all steps of the record, in its order."""
    return [
        number
        for step in steps(directory)
        for first, last in step["questions"]
        for number in range(first, last + 1)
    ]  # fmt: skip


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint, moments included."""
    state = open_checkpoint(directory).state
    return {name: state.read(name, full_box(facts.size)) for name, facts in state.tensors.items()}


def assert_equal_weights(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


KILL = signal.SIGKILL
