"""Groups of rollouts for the next steps: questions are asked, answers are worth something.

Questions are asked in waves, in the order of their numbers, until the groups of a round are there. What is in a round
depends on the rewards alone: neither on the number of ranks nor on the order in which rollouts end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np

from parallel.layout import Place
from trainer.config.rl.keys import RlConfig
from trainer.data.questions.asked import Asked, Questions
from trainer.engine.request import Request, Sampling
from trainer.rl.asynchronous.ahead import Ahead
from trainer.rl.asynchronous.held import Held
from trainer.rl.asynchronous.under_way import Outcome
from trainer.rl.draws import question_of, sampling_of
from trainer.rl.groups import Group
from trainer.rl.rewards.base import Reward, score_all
from trainer.rl.rollout.led import Led
from trainer.rl.rollout.protocol import Rollout, RolloutEngine
from trainer.rl.rounds import cut_steps, missing


@dataclass(frozen=True)
class Produced:
    """Groups of one step on this rank, those that do not teach among them. seconds: that its round took here, by
    purpose, in equal parts for its steps. figures: further sums over rollouts here, in parts by the number of groups.
    end: the number of the first question behind those of the step."""

    groups: Sequence[Group]
    end: int
    seconds: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rolled:
    """rollouts of questions, [N], with what each is worth. seconds: by purpose. figures: sums over rollouts: of turns,
    of calls of tools."""

    rollouts: Sequence[Rollout]
    values: np.ndarray
    seconds: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict)


class Producer(Protocol):
    """Gives the groups of the next steps."""

    def produce(self, first: int, steps: int) -> list[Produced]:
        """Groups of the questions from number `first` on, for `steps` steps; this rank's part of each step."""
        ...


class Synchronous:
    """Implements `Producer`, collective over `leaders`. seed: of the draws. batch: groups of a step, over all ranks.
    place: of this rank, which asks every question whose number leaves its reader's when divided by the readers. ahead:
    where rollouts are drawn ahead of training."""

    def __init__(
        self,
        cfg: RlConfig,
        questions: Questions,
        engine: RolloutEngine,
        reward: Reward,
        *,
        seed: int,
        batch: int,
        place: Place,
        leaders: Led,
        ahead: Ahead | None = None,
    ) -> None:
        self.cfg, self.questions, self.engine, self.reward = cfg, questions, engine, reward
        self.seed, self.batch, self.place, self.leaders = seed, batch, place, leaders
        self.ahead = ahead

    def produce(self, first: int, steps: int) -> list[Produced]:
        """Groups under the weights that the engine has now: `batch` a step, or with `rl.oversample` above 1 as many
        that teach, unless the questions that it allows are not enough."""
        wanted, over = steps * self.batch, self.cfg.oversample > 1
        marks: list[tuple[int, bool]] = []  # of all ranks: the number of a question, True where its group teaches
        groups: list[Group] = []
        seconds, figures = Counter[str](), Counter[str]()
        while wave := min(missing(marks, wanted, over=over), self.cfg.oversample * wanted - len(marks)):
            start = first + len(marks)
            found, rolled = self._wave(range(start, start + wave))
            groups += found
            seconds.update(rolled.seconds)
            figures.update(rolled.figures)
            mine = [(group.sample, group.teaches) for group in found]
            marks += sorted(mark for of_rank in self.leaders.gather(mine) for mark in of_rank)
        produced: list[Produced] = []
        for start, end in pairwise([first, *cut_steps(marks, steps, over=over)]):
            of_step = [group for group in groups if start <= group.sample < end]
            share = len(of_step) / max(len(groups), 1)
            shared = {name: share * value for name, value in figures.items()}
            parts = {name: value / steps for name, value in seconds.items()}
            produced.append(Produced(of_step, end, parts, shared))
        return produced

    def stop(self) -> None:
        """As of `Ahead`, as the next three are; without one nothing is under way between rounds."""
        if self.ahead is not None:
            self.ahead.stop()

    def held(self) -> list[Held]:
        return self.ahead.held() if self.ahead is not None else []

    def restore(self, held: Sequence[Held]) -> None:
        if self.ahead is not None:
            self.ahead.restore(held)

    def figures(self) -> dict[str, float]:
        return self.ahead.figures() if self.ahead is not None else {}

    def _wave(self, samples: range) -> tuple[list[Group], Rolled]:
        """This rank's groups of the questions with these numbers."""
        mine, size = self._mine(samples), self.cfg.group_size
        asked = self.questions.pick(mine)
        each = [one for one in asked for _ in range(size)]
        if self.ahead is not None:
            rolled = self._worth(each, *self.ahead.collect(samples, self.cfg.deadline_s))
        else:
            how = [sampling_of(self.seed, sample, member) for sample in mine for member in range(size)]
            rolled = self._roll([*zip(each, how, strict=True)])
        return self._groups(mine, asked, rolled), rolled

    def _mine(self, samples: range) -> list[int]:
        """The numbers of this rank's questions."""
        return [sample for sample in samples if sample % self.place.readers == self.place.reader]

    def _groups(self, samples: Sequence[int], asked: Sequence[Asked], rolled: Rolled) -> list[Group]:
        size = self.cfg.group_size
        return [
            Group(sample, one, rolled.rollouts[at * size : (at + 1) * size], rolled.values[at * size : (at + 1) * size])
            for at, (sample, one) in enumerate(zip(samples, asked, strict=True))
        ]

    def answer(self, asked: Sequence[Asked]) -> tuple[list[Rollout], np.ndarray]:
        """The most likely answers to questions, and what each is worth [questions]."""
        rolled = self._roll([(one, sampling_of(self.seed, 0, 0, temperature=0.0)) for one in asked])
        return [*rolled.rollouts], rolled.values

    def _roll(self, asked: Sequence[tuple[Asked, Sampling]]) -> Rolled:
        """Draw an answer to each question in the way that is given with it."""
        end = self.questions.ends
        requests = [Request(one.prompt, self.cfg.max_tokens, sampling, end) for one, sampling in asked]
        started = time.perf_counter()
        rollouts = self.engine.generate(requests, deadline_s=self.cfg.deadline_s)
        return self._worth([one for one, _ in asked], [*map(Outcome, rollouts)], time.perf_counter() - started)

    def _worth(self, asked: Sequence[Asked], outcomes: Sequence[Outcome], seconds: float) -> Rolled:
        """Rollouts of questions with their values. seconds: that they took."""
        started, rollouts = time.perf_counter(), [one.rollout for one in outcomes]
        values = self._score(asked, rollouts)
        return Rolled(rollouts, values, {"rollout": seconds, "reward": time.perf_counter() - started})

    def _score(self, asked: Sequence[Asked], rollouts: Sequence[Rollout]) -> np.ndarray:
        text = self.questions.text_of
        pairs = [(question_of(one), text(one, rollout.ids)) for one, rollout in zip(asked, rollouts, strict=True)]
        with self.leaders.world.watch.ticking():  # a judge has deadlines of its own
            verdicts = score_all(self.reward, pairs)
        return np.array([verdict.value for verdict in verdicts], np.float64)
