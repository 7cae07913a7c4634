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
from trainer.data.hashing import mix64
from trainer.data.questions.asked import Asked, Questions
from trainer.engine.request import Request, Sampling
from trainer.rl.asynchronous.held import Held
from trainer.rl.groups import Group
from trainer.rl.rewards.base import Question, Reward, score_all
from trainer.rl.rollout.led import Led
from trainer.rl.rollout.protocol import Rollout, RolloutEngine
from trainer.rl.rounds import cut_steps, missing

SAMPLING = 6  # the purpose of a hash: the seed of a rollout


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
    place: of this rank, which asks every question whose number leaves its reader's when divided by the readers."""

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
    ) -> None:
        self.cfg, self.questions, self.engine, self.reward = cfg, questions, engine, reward
        self.seed, self.batch, self.place, self.leaders = seed, batch, place, leaders

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
        """Before the weights change, or the rollouts are saved: none is under way behind this."""

    def held(self) -> list[Held]:
        """This rank's rollouts that are under way, for a checkpoint; behind `stop`."""
        return []

    def restore(self, held: Sequence[Held]) -> None:
        """Continue with what a checkpoint has of this rank's rollouts that are under way."""

    def figures(self) -> dict[str, float]:
        """Numbers for the record since the last call, on this rank, in which rollouts were under way between rounds."""
        return {}

    def _wave(self, samples: range) -> tuple[list[Group], Rolled]:
        """This rank's groups of the questions with these numbers."""
        mine = self._mine(samples)
        asked = [self.questions.ask(sample, 1)[0] for sample in mine]
        rolled = self._roll(
            [
                (one, self._sampling(sample, member))
                for one, sample in zip(asked, mine, strict=True)
                for member in range(self.cfg.group_size)
            ]
        )
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
        rolled = self._roll([(one, self._sampling(0, 0, temperature=0.0)) for one in asked])
        return [*rolled.rollouts], rolled.values

    def _roll(self, asked: Sequence[tuple[Asked, Sampling]]) -> Rolled:
        """Draw an answer to each question in the way that is given with it."""
        end = self.questions.ends
        requests = [Request(one.prompt, self.cfg.max_tokens, sampling, end) for one, sampling in asked]
        started = time.perf_counter()
        rollouts = self.engine.generate(requests, deadline_s=self.cfg.deadline_s)
        generated = time.perf_counter()
        values = self._score([one for one, _ in asked], rollouts)
        return Rolled(rollouts, values, {"rollout": generated - started, "reward": time.perf_counter() - generated})

    def _sampling(self, sample: int, member: int, temperature: float = 1.0) -> Sampling:
        seed = int(mix64(self.seed, SAMPLING, sample, member)[0] >> np.uint64(1))
        return Sampling(temperature, seed=seed)

    def _score(self, asked: Sequence[Asked], rollouts: Sequence[Rollout]) -> np.ndarray:
        text = self.questions.text_of
        pairs = [(question_of(one), text(one, rollout.ids)) for one, rollout in zip(asked, rollouts, strict=True)]
        with self.leaders.world.watch.ticking():  # a judge has deadlines of its own
            verdicts = score_all(self.reward, pairs)
        return np.array([verdict.value for verdict in verdicts], np.float64)


def question_of(asked: Asked) -> Question:
    """The question as rewards and environments see it."""
    return Question(asked.number, asked.record.prompt, asked.record.answer, asked.record.data)
