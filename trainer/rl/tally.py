"""Figures of a reward between two looks at it."""

from __future__ import annotations

from collections import Counter

from trainer.rl.rewards.base import Reward, counts_of


class Tally:
    """Divides what a reward counts from now on into parts that add up to it."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self._before = reward, counts_of(reward)

    def since(self) -> Counter[str]:
        """Figures since the last call, by name; 0 where something was counted only before."""
        before, self._before = self._before, counts_of(self.reward)
        return Counter({name: value - before[name] for name, value in self._before.items()})
