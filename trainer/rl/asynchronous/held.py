"""Rollouts in a checkpoint: those of steps that wait for training, and what there is of those that are under way.

A rank that reads questions writes one file of plain arrays, `rollouts-<reader>-of-<readers>.npz`, about 21 bytes a
token and 2 L K more for its experts. Any number of ranks can read them.

Legend: P tokens of the prompt · G tokens drawn · N rollouts · L layers · K experts per token.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from trainer.rl.rollout.protocol import Finish, Rollout

_NAME = re.compile(r"rollouts-(\d+)-of-(\d+)\.npz")
_FINISH = get_args(Finish)
UNDER_WAY = -1


@dataclass(frozen=True)
class Held:
    """sample, member: the number of its question in the run, and its own among the rollouts of that. step: the number
    of its step among those that wait, UNDER_WAY for one that is not part of one. advantage: of one of a step. old: [G],
    log-probabilities under the weights at the start of its round, where there are any."""

    sample: int
    member: int
    rollout: Rollout
    step: int = UNDER_WAY
    advantage: float = 0.0
    old: npt.NDArray[np.float32] | None = None


def name_of(reader: int, readers: int) -> str:
    """The name of a reader's file."""
    return f"rollouts-{reader}-of-{readers}.npz"


def pack_held(held: Sequence[Held], steps: Sequence[dict[str, Any]]) -> bytes:
    """A file's content. steps: JSON values of every step that waits, in their order."""
    rollouts = [one.rollout for one in held]
    table = [
        (one.sample, one.member, one.step, len(one.rollout.prompt), len(one.rollout.ids),
         -1 if one.rollout.routes is None else len(one.rollout.routes), _FINISH.index(one.rollout.finish),
         one.rollout.drawn is not None, one.old is not None)
        for one in held
    ]  # fmt: skip
    routes = [one.routes for one in rollouts if one.routes is not None]
    file = io.BytesIO()
    np.savez(
        file,
        table=np.array(table, np.int64).reshape(len(table), 9),
        advantages=np.array([one.advantage for one in held], np.float64),
        tokens=_joined((np.array((*one.prompt, *one.ids), np.int32) for one in rollouts), np.int32),
        log_probs=_joined((one.log_probs for one in rollouts), np.float32),
        versions=_joined((one.versions for one in rollouts), np.int64),
        drawn=_joined((one.drawn for one in rollouts if one.drawn is not None), np.bool_),
        old=_joined((one.old for one in held if one.old is not None), np.float32),
        routes=np.concatenate(routes) if routes else np.zeros((0, 0, 0), np.uint16),
        steps=np.frombuffer(json.dumps(steps, default=float).encode(), np.uint8),
    )
    return file.getvalue()


def read_held(files: Iterable[Path], reader: int, readers: int) -> tuple[list[Held], list[dict[str, Any]]]:
    """This reader's rollouts, by question and member, and the steps that wait. files: of a checkpoint, of any number of
    readers; none where nothing waited."""
    named = {path: match for path in files if (match := _NAME.fullmatch(path.name))}
    alike = any(int(match[2]) == readers for match in named.values())
    held: list[Held] = []
    steps: list[dict[str, Any]] = []
    for path, match in sorted(named.items()):
        if alike and int(match[1]) != reader:
            continue
        of_file, found = _read(path)
        held += [one for one in of_file if one.sample % readers == reader]
        steps = steps or found
    return sorted(held, key=lambda one: (one.sample, one.member)), steps


def _read(path: Path) -> tuple[list[Held], list[dict[str, Any]]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    at = dict.fromkeys(arrays, 0)

    def take(name: str, count: int) -> npt.NDArray[Any]:
        start = at[name]
        at[name] += count
        return arrays[name][start : at[name]]

    held = []
    for row, advantage in zip(arrays["table"].tolist(), arrays["advantages"].tolist(), strict=True):
        sample, member, step, size, count, rows, finish, drawn, old = row
        tokens = take("tokens", size + count).tolist()
        rollout = Rollout(
            tuple(tokens[:size]),
            tuple(tokens[size:]),
            take("log_probs", count),
            None if rows < 0 else take("routes", rows),
            take("versions", count),
            _FINISH[finish],
            take("drawn", count) if drawn else None,
        )
        held.append(Held(sample, member, rollout, step, advantage, take("old", count) if old else None))
    return held, json.loads(arrays["steps"].tobytes())


def _joined(parts: Iterable[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
