"""Groups, lines of the record and rollouts of checkpoints that runs with rollouts ahead of training have made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.rl.asynchronous.held import Held, read_held
from trainer.rl.groups import Group
from trainer.rl.producer import Produced, Synchronous
from trainer.rl.rollout.protocol import Rollout

FROZEN = ("optim.lr=1e-30",)  # the weights of all versions are equal
TIMED = {"peak_memory_bytes", "rollout/tokens_per_second", "train/tokens_per_second", "tokens_per_second", "mfu"}


def rounds_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Sequence[Group]]]:
    """Every step from now on, as it is produced: the number of its first step, and its groups."""
    found = []
    genuine = Synchronous.produce

    def kept(self: Synchronous, first: int, count: int) -> list[Produced]:
        made = genuine(self, first, count)
        found.extend((self.engine.version, one.groups) for one in made)
        return made

    monkeypatch.setattr(Synchronous, "produce", kept)
    return found


def same(a: Rollout, b: Rollout) -> bool:
    """Equal tokens, log-probabilities and routes, to the last bit."""
    assert a.routes is not None
    assert b.routes is not None
    return a.ids == b.ids and np.array_equal(a.log_probs, b.log_probs) and np.array_equal(a.routes, b.routes)


def numbers(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The values of lines that do not depend on the machine."""
    return [
        {name: value for name, value in line.items() if "second" not in name and name not in TIMED} for line in lines
    ]


def rollouts_of(directory: Path, step: int) -> tuple[list[Held], list[dict[str, Any]]]:
    """The rollouts of a checkpoint, of one process, and the steps that wait in it."""
    found = sorted((directory / "checkpoints" / f"step-{step}").glob("rollouts-*"))
    return read_held(found, 0, 1)
