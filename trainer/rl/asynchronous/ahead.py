"""Rollouts whose drawing is ahead of training.

Questions are asked some ahead of those that a round trains, in their order, and rounds train them in that order. So a
group is trained at most as many rounds after its first token as are ahead, no rollout is thrown away because of its
age, and long answers are not trained later than short ones. A round waits for its own groups alone; what is not done
behind them continues under the weights of the next one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from parallel.layout import Place
from trainer.rl.asynchronous.background import Background
from trainer.rl.asynchronous.held import Held
from trainer.rl.asynchronous.under_way import Outcome


class Ahead:
    """background: draws. size: of a group. count: questions, over all ranks, that are under way or done behind those
    that a round trains. place: of this rank. `collect` is called inside of `Led.lead`, the rest on all ranks."""

    def __init__(self, background: Background, *, size: int, count: int, place: Place) -> None:
        self.background, self.size, self.count, self.place = background, size, count, place
        self._drawn_before = 0
        self._waited, self._since = 0.0, time.perf_counter()

    def collect(self, samples: range, deadline_s: float) -> tuple[list[Outcome], float]:
        """The rollouts of this rank's questions among these, group by group, and the seconds that they were waited
        for; what is ahead of them is asked as well."""
        self.background.start(self._numbers(range(samples.start, samples.stop + self.count)))
        wanted, started = self._numbers(samples), time.perf_counter()
        found = self.background.collect(wanted, deadline_s)
        waited = time.perf_counter() - started
        self._waited += waited
        return [found[number] for number in wanted], waited

    def stop(self) -> None:
        """Stop all rollouts that are under way, before the weights change or the rollouts are saved."""
        self.background.stop()

    def held(self) -> list[Held]:
        """This rank's rollouts that are under way, for a checkpoint; behind `stop`."""
        every = sorted(self.background.held().items())
        return [Held(*divmod(number, self.size), one) for number, one in every if self._is_mine(number // self.size)]

    def restore(self, held: Sequence[Held]) -> None:
        """Continue with what a checkpoint has of this rank's rollouts that are under way."""
        self.background.store({one.sample * self.size + one.member: one.rollout for one in held})

    def figures(self) -> dict[str, float]:
        """Numbers for the record since the last call, on this rank."""
        drawn, self._drawn_before = self.background.drawn - self._drawn_before, self.background.drawn
        now = time.perf_counter()
        seconds = now - self._since if self.background.overlaps else self._waited
        self._waited, self._since = 0.0, now
        return {"tokens_per_second": drawn / max(seconds, 1e-9), **self.background.counts()}

    def _numbers(self, samples: range) -> list[int]:
        mine = filter(self._is_mine, samples)
        return [sample * self.size + member for sample in mine for member in range(self.size)]

    def _is_mine(self, sample: int) -> bool:
        return sample % self.place.readers == self.place.reader
