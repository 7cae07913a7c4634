"""Groups of rollouts: the rollouts of one question, what they are worth, and their advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.questions.asked import Asked
from trainer.rl.rollout.protocol import Rollout

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """sample: the number of the question in the run. rewards: [G], of each rollout."""

    sample: int
    asked: Asked
    rollouts: Sequence[Rollout]
    rewards: Floats

    @property
    def teaches(self) -> bool:
        """False where all rollouts are worth the same: their advantages are zero."""
        return bool((self.rewards != self.rewards[0]).any())

    @property
    def advantages(self) -> Floats:
        """[G], `leave_one_out`."""
        return leave_one_out(self.rewards)


def leave_one_out(rewards: Floats) -> Floats:
    """Each reward less the mean of the others, [G]: G / (G - 1) times the reward less the mean of all. They sum to
    zero. Raises ValueError for fewer than two."""
    if len(rewards) < 2:
        raise ValueError(f"leave-one-out needs two rewards or more, not {len(rewards)}")
    others: Floats = (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards - others
