"""The groups of a round, divided among its steps. Marks are numbers of questions, each with True where its group
teaches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Mark = tuple[int, bool]


def missing(marks: Sequence[Mark], wanted: int, *, over: bool) -> int:
    """The number of groups that a round of `wanted` lacks. over: only those that teach count."""
    return wanted - len(_counted(marks, over))


def cut_steps(marks: Sequence[Mark], steps: int, *, over: bool) -> list[int]:
    """The number of the first question behind each step, [steps]. Steps have equally many of the groups that count, or
    the first ones one more; others belong to the step of the one that counts before them."""
    counted, end = _counted(marks, over), max((sample for sample, _ in marks), default=-1) + 1
    parts = np.array_split(np.array(counted, np.int64), steps)
    starts = [*np.cumsum([len(part) for part in parts[:-1]]).tolist(), len(counted)]
    return [*(counted[at] if at < len(counted) else end for at in starts[:-1]), end]


def _counted(marks: Sequence[Mark], over: bool) -> list[int]:
    return sorted(sample for sample, teaches in marks if teaches or not over)
