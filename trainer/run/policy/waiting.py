"""Steps of a round that wait for training, and what a checkpoint has of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.config.rl.keys import RlConfig
from trainer.data.batch import IGNORE, Batch
from trainer.objectives.policy import Tokens, kept
from trainer.rl.asynchronous.held import Held
from trainer.rl.batches import Trained, pack


@dataclass
class Ready:
    """A step that waits. trained: its rollouts on this rank, packed into `batches`. facts: of its line. end: the number
    of the first question behind it."""

    trained: Sequence[Trained]
    batches: list[Batch]
    facts: dict[str, Any]
    end: int


def needs_old(rl: RlConfig) -> bool:
    """Return True if training compares with the weights at the start of a round."""
    return rl.updates > 1 or rl.denominator == "kept"


def with_old(batch: Batch, old: Tensor, rl: RlConfig) -> Batch:
    """The batch with log-probabilities under the weights at the start of its round, and the tokens that
    `rl.denominator=kept` counts. old: [B, S]."""
    assert batch.labels is not None
    flat, rollout = old.flatten(), batch.extra["rollout"].flatten()
    there = batch.labels.flatten() != IGNORE
    counted = kept(Tokens(flat, flat, rollout, there, batch.cu_seqlens), rl)
    return replace(batch, extra={**batch.extra, "old": old, "kept": counted.view(old.shape)})


def hold_steps(ready: Sequence[Ready], seq_len: int) -> list[Held]:
    """This rank's rollouts of the steps that wait."""
    found = []
    for step, one in enumerate(ready):
        members = Counter[int]()
        old = _old_of(one, seq_len)
        for number, trained in enumerate(one.trained):
            member, sample = members[trained.number], trained.number
            members[sample] += 1
            found.append(Held(sample, member, trained.rollout, step, trained.advantage, old.get(number)))
    return found


def restore_old(
    trained: Sequence[Held], batches: Sequence[Batch], lengths: Sequence[int], seq_len: int, rl: RlConfig
) -> list[Batch]:
    """Batches with what a checkpoint has of their log-probabilities. trained, lengths: of the rollouts that are packed
    into them."""
    flat = [np.zeros(batch.extra["rollout"].shape, np.float32) for batch in batches]
    for (number, _, end), at in zip(_places(batches), _order(lengths, seq_len), strict=True):
        old = trained[at].old
        assert old is not None
        flat[number].reshape(-1)[end - len(old) : end] = old
    return [with_old(batch, torch.from_numpy(of_batch), rl) for batch, of_batch in zip(batches, flat, strict=True)]


def _old_of(ready: Ready, seq_len: int) -> dict[int, npt.NDArray[np.float32]]:
    """By the number of the rollout; none where the batches have none."""
    if not ready.batches or "old" not in ready.batches[0].extra:
        return {}
    found = {}
    order = _order([one.length for one in ready.trained], seq_len)
    for (number, _, end), at in zip(_places(ready.batches), order, strict=True):
        count = len(ready.trained[at].rollout.ids)
        found[at] = ready.batches[number].extra["old"].flatten()[end - count : end].numpy()
    return found


def _order(lengths: Sequence[int], seq_len: int) -> list[int]:
    return [number for window in pack(lengths, seq_len) for number in window]


def _places(batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
    """The batch of each rollout, and where it starts and ends in it, in the order of the windows."""
    for number, batch in enumerate(batches):
        real = batch.extra["real"].flatten()
        for start, end in pairwise(batch.cu_seqlens.tolist()):
            if real[start]:
                yield number, start, end
