"""Groups of rollouts whose drawing is ahead of training.

Questions are asked `ahead` of those that a round trains, in their order, and rounds train them in that order. So a
group is trained at most as many rounds after its first token as are ahead, no rollout is thrown away because of its
age, and long answers are not trained later than short ones. A round waits for its own groups alone; what is not done
behind them continues under the weights of the next one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from trainer.rl.asynchronous.background import Background
from trainer.rl.asynchronous.drawn import Drawn
from trainer.rl.asynchronous.held import Held
from trainer.rl.groups import Group
from trainer.rl.producer import Rolled, Synchronous
from trainer.rl.rollout.protocol import Rollout, RolloutError, other_prompt


class Asynchronous(Synchronous):
    """Implements `Producer`. background: of `engine`. ahead: questions, over all ranks, that are under way or done
    behind those that a round trains. The rest as of `Synchronous`."""

    def __init__(self, *args: Any, background: Background, ahead: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self.background, self.ahead = background, ahead
        self._drawn: dict[int, Drawn] = {}  # by question and member, of this rank's that are not trained
        self._running: set[int] = set()
        self._discarded = 0  # tokens since the last figures
        self._drawn_before = 0
        self._waited, self._since = 0.0, time.perf_counter()

    def stop(self) -> None:
        for number, part in self.background.stop().items():
            self._add(number, part)
        self._running.clear()

    def held(self) -> list[Held]:
        size = self.cfg.group_size
        return [Held(*divmod(number, size), one.whole()) for number, one in self._drawn.items() if one.tokens]

    def restore(self, held: Sequence[Held]) -> None:
        for one in held:
            prompt = tuple(self.questions.ask(one.sample, 1)[0].prompt)
            if prompt == one.rollout.prompt:  # else the questions were changed, as `data.allow_changed` allows
                drawn = Drawn(prompt, self._sampling(one.sample, one.member), [one.rollout])
                self._drawn[one.sample * self.cfg.group_size + one.member] = drawn

    def figures(self) -> dict[str, float]:
        drawn, self._drawn_before = self.background.drawn - self._drawn_before, self.background.drawn
        discarded, self._discarded = self._discarded, 0
        now = time.perf_counter()
        seconds = now - self._since if self.background.overlaps else self._waited
        self._waited, self._since = 0.0, now
        return {
            "tokens_per_second": drawn / max(seconds, 1e-9),
            "discarded_tokens": discarded,
            "unfinished": sum(not one.ended for one in self._drawn.values()),
            "waiting": sum(one.ended for one in self._drawn.values()),
        }

    def _wave(self, samples: range) -> tuple[list[Group], Rolled]:
        size, end = self.cfg.group_size, self.questions.ends
        mine = self._mine(samples)
        for sample in self._mine(range(samples.start, samples.stop + self.ahead)):
            (question,) = self.questions.ask(sample, 1)
            for member in range(size):
                self._drawn.setdefault(
                    sample * size + member, Drawn(tuple(question.prompt), self._sampling(sample, member))
                )
        missing = {number: one for number, one in self._drawn.items() if not one.ended}
        if self.cfg.partial_rollouts == "discard":
            for number, one in missing.items():
                if number not in self._running:
                    self._discarded += one.tokens
                    one.parts.clear()
        new = {
            number: missing[number].request(self.cfg.max_tokens, end)
            for number in sorted(missing)
            if number not in self._running
        }
        self._running |= new.keys()
        self.background.start(new)
        wanted = [sample * size + member for sample in mine for member in range(size)]
        started = time.perf_counter()
        found = self.background.collect([number for number in wanted if number in missing], self.cfg.deadline_s)
        waited = time.perf_counter()
        self._waited += waited - started
        for number, part in found.items():
            self._add(number, part)
        if cut := [number for number in wanted if not self._drawn[number].ended]:
            raise self._cut_short(cut)
        rollouts = [self._drawn.pop(number).whole() for number in wanted]
        asked = [self.questions.ask(sample, 1)[0] for sample in mine]
        values = self._score([one for one in asked for _ in range(size)], rollouts)
        seconds = {"rollout": waited - started, "reward": time.perf_counter() - waited}
        rolled = Rolled(rollouts, values, seconds)
        return self._groups(mine, asked, rolled), rolled

    def _cut_short(self, numbers: Sequence[int]) -> RolloutError:
        name, question = self.background.name, numbers[0] // self.cfg.group_size
        allowed = "check that nothing else pauses it or aborts its requests"
        text = f"{name}: {len(numbers)} rollouts of this round were cut short, the first of question {question}"
        return RolloutError(f"{text}; {allowed}", where=name, value=question, allowed=allowed)

    def _add(self, number: int, part: Rollout) -> None:
        try:
            self._drawn[number].add(part)
        except ValueError:
            raise other_prompt(self.background.name, number // self.cfg.group_size) from None
        self._running.discard(number)
