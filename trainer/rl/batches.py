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
    layers: Sequence[int] | None = None, short: bool = False,
) -> list[Batch]:  # fmt: skip
    """`micro_batches` batches of `micro_batch` windows of seq_len positions; windows that there are too few of are
    padding. windows: of `pack`. padding: the id of padding. routed: with routes, also where nothing is trained on: all
    ranks run the same passes. layers: whose routes this rank needs; None: all. short: the last batch has no window of
    padding alone, unless it has no other."""
    rows = [list(windows[at]) if at < len(windows) else [] for at in range(micro_batches * micro_batch)]
    if short:
        rows = rows[: max(len(windows), (micro_batches - 1) * micro_batch + 1)]
    return [
        _batch([[trained[number] for number in row] for row in rows[at : at + micro_batch]], seq_len, model, padding,
               routed, layers)
        for at in range(0, len(rows), micro_batch)
    ]  # fmt: skip


def _each_from(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`counts` consecutive numbers from each start on, one run after the other."""
    return np.arange(counts.sum()) + np.repeat(starts - counts.cumsum() + counts, counts)


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
    starts = list[int]()
    for row, documents in enumerate(rows):
        at, end = row * seq_len, (row + 1) * seq_len
        for one in documents:
            starts.append(at)
            at += one.length
            bounds.append(at)
            samples.append(one.number)
        position[at:end] = np.arange(end - at) % PADDING
        bounds += [*range(at + PADDING, end, PADDING), *([end] if at < end else [])]
    if every := [one for documents in rows for one in documents]:
        rollouts, lengths = [one.rollout for one in every], np.array([one.length for one in every])
        counts = np.array([len(one.ids) for one in rollouts])
        within = _each_from(np.zeros_like(lengths), lengths)
        here = within + np.repeat(starts, lengths)
        ids[here] = [token for one in rollouts for token in (*one.prompt, *one.ids[:-1])]
        position[here], real[here] = within, True
        of_answer = _each_from(np.array(starts) + lengths - counts, counts)
        drawn = [np.ones(len(one.ids), np.bool_) if one.drawn is None else one.drawn for one in rollouts]
        answers, trained = np.array([token for one in rollouts for token in one.ids]), np.concatenate(drawn)
        labels[of_answer] = np.where(trained, answers, IGNORE)
        rollout[of_answer] = np.concatenate([one.log_probs for one in rollouts])
        advantages[of_answer] = np.repeat([one.advantage for one in every], counts)
        share[of_answer] = trained / np.repeat([of.sum() for of in drawn], counts)
        if routes is not None:
            of_all = [one.routes for one in every if one.routes is not None]
            assert len(of_all) == len(every)
            routes[here] = np.concatenate(of_all)[:, own]

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
