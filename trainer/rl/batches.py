"""Packed micro-batches of rollouts.

A rollout of G tokens on a prompt of P is a document of P + G - 1 inputs: its last token is a label only. Documents are
packed into windows, whole; what is left of a window is padding, in short documents that cost attention little.

Legend: B windows of a micro-batch · S positions of a window · L layers · K experts per token · N positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.config.model import ModelConfig
from trainer.data.batch import IGNORE, Batch
from trainer.rl.rollout.protocol import Rollout
from trainer.rl.routes import Routes, padding_routes

PADDING = 16  # tokens of a document of padding


@dataclass(frozen=True)
class Trained:
    """A rollout to train on. number: of its question in the run. routes: [P + G - 1, L, K] where they are used."""

    number: int
    rollout: Rollout
    advantage: float
    routes: Routes | None = None

    @property
    def length(self) -> int:
        """Inputs."""
        return len(self.rollout.prompt) + len(self.rollout.ids) - 1


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of documents in each window, every window at most `capacity` long: the longest first, each into the first
    window with room. No document may be longer."""
    windows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        at = next((at for at, left in enumerate(room) if left >= lengths[number]), len(room))
        if at == len(room):
            windows.append([])
            room.append(capacity)
        windows[at].append(number)
        room[at] -= lengths[number]
    return [sorted(window) for window in windows]


def make_batches(
    trained: Sequence[Trained], windows: Sequence[Sequence[int]], *, micro_batches: int, micro_batch: int, seq_len: int,
    model: ModelConfig, padding: int, routed: bool,
    layers: Sequence[int] | None = None,
) -> list[Batch]:  # fmt: skip
    """`micro_batches` batches of `micro_batch` windows of seq_len positions; windows that there are too few of are
    padding. windows: of `pack`. padding: the id of padding. routed: with routes, also where nothing is trained on: all
    ranks run the same passes. layers: whose routes this rank needs; None: all."""
    rows = [list(windows[at]) if at < len(windows) else [] for at in range(micro_batches * micro_batch)]
    return [
        _batch([[trained[number] for number in row] for row in rows[at : at + micro_batch]], seq_len, model, padding,
               routed, layers)
        for at in range(0, len(rows), micro_batch)
    ]  # fmt: skip


def _batch(
    rows: Sequence[Sequence[Trained]], seq_len: int, model: ModelConfig, padding: int, routed: bool,
    layers: Sequence[int] | None,
) -> Batch:  # fmt: skip
    positions = len(rows) * seq_len
    ids, labels = np.full(positions, padding, np.int64), np.full(positions, IGNORE, np.int64)
    position, bounds, samples = np.zeros(positions, np.int64), [0], list[int]()
    advantages, rollout, share = (np.zeros(positions, np.float32) for _ in range(3))
    real = np.zeros(positions, np.bool_)
    own = slice(None) if layers is None else [*layers]
    routes = padding_routes(positions, model)[:, own] if routed else None
    for row, documents in enumerate(rows):
        at = row * seq_len
        for one in documents:
            prompt, answer = one.rollout.prompt, one.rollout.ids
            here, of_answer = slice(at, at + one.length), slice(at + len(prompt) - 1, at + one.length)
            ids[here], position[here], real[here] = (*prompt, *answer[:-1]), np.arange(one.length), True
            drawn = np.ones(len(answer), np.bool_) if one.rollout.drawn is None else one.rollout.drawn
            labels[of_answer], rollout[of_answer] = np.where(drawn, answer, IGNORE), one.rollout.log_probs
            advantages[of_answer], share[of_answer] = one.advantage, drawn / drawn.sum()
            if routes is not None:
                assert one.routes is not None
                routes[here] = one.routes[:, own]
            at += one.length
            bounds.append(at)
            samples.append(one.number)
        end = (row + 1) * seq_len
        position[at:end] = np.arange(end - at) % PADDING
        bounds += [*range(at + PADDING, end, PADDING), *([end] if at < end else [])]

    def shaped(values: npt.NDArray) -> torch.Tensor:
        return torch.from_numpy(values.reshape(len(rows), seq_len, *values.shape[1:]))

    inputs = {"ids": shaped(ids), "positions": shaped(position)}
    if routes is not None:
        inputs["expert_ids"] = shaped(routes)
    extra = {"advantages": advantages, "rollout": rollout, "share": share, "real": real}
    return Batch(
        inputs=inputs,
        labels=shaped(labels),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        num_tokens=int((labels != IGNORE).sum()),
        samples=samples,
        extra={name: shaped(values) for name, values in extra.items()},
    )
