"""Groups of rollouts for the next steps: questions are asked, answers are worth something.

`Synchronous` produces when it is asked, and training waits. An asynchronous producer has the same method `produce`,
takes what an engine beside training has finished by then, oldest first, and starts `engine.load` with the newest
weights when they are older than it allows; every token's version is in its `Rollout`, so that the record and the masks
of `trainer.objectives.policy` need no change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from parallel.layout import Place
from trainer.config.rl.keys import RlConfig
from trainer.data.hashing import mix64
from trainer.data.questions.asked import Asked, Questions
from trainer.engine.request import Request, Sampling
from trainer.rl.groups import Group
from trainer.rl.rewards.base import Question, Reward, score_all
from trainer.rl.rollout.protocol import Rollout, RolloutEngine

SAMPLING = 6  # the purpose of a hash: the seed of a rollout


@dataclass(frozen=True)
class Produced:
    """Groups of one step on this rank, all of them, the seconds that they took here, by purpose, and further figures of
    their rollouts, summed."""

    groups: Sequence[Group]
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
    """Implements `Producer`. seed: of the draws. batch: questions of a step, over all ranks. place: of this rank."""

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
    ) -> None:
        self.cfg, self.questions, self.engine, self.reward = cfg, questions, engine, reward
        self.seed, self.batch, self.place = seed, batch, place

    def produce(self, first: int, steps: int) -> list[Produced]:
        """Groups under the weights that the engine has now."""
        mine = self.batch // self.place.readers
        samples = [
            first + step * self.batch + self.place.reader * mine + at for step in range(steps) for at in range(mine)
        ]
        asked = [self.questions.ask(sample, 1)[0] for sample in samples]
        size = self.cfg.group_size
        rolled = self._roll(
            [
                (one, self._sampling(sample, member))
                for one, sample in zip(asked, samples, strict=True)
                for member in range(size)
            ]
        )
        rollouts, values = rolled.rollouts, rolled.values
        groups = [
            Group(sample, one, rollouts[at * size : (at + 1) * size], values[at * size : (at + 1) * size])
            for at, (sample, one) in enumerate(zip(samples, asked, strict=True))
        ]
        shared = {name: value / steps for name, value in rolled.seconds.items()}
        figures = {name: value / steps for name, value in rolled.figures.items()}
        return [Produced(groups[step * mine : (step + 1) * mine], shared, figures) for step in range(steps)]

    def answer(self, asked: Sequence[Asked]) -> tuple[list[Rollout], np.ndarray]:
        """The most likely answers to questions, and what each is worth [questions]."""
        rolled = self._roll([(one, self._sampling(0, 0, temperature=0.0)) for one in asked])
        return [*rolled.rollouts], rolled.values

    def _roll(self, asked: Sequence[tuple[Asked, Sampling]]) -> Rolled:
        """Draw an answer to each question in the way that is given with it."""
        end = frozenset({self.questions.tokenizer.eos_id})
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
        text = self.questions.tokenizer.answer_text
        pairs = [(question_of(one), text(rollout.ids)) for one, rollout in zip(asked, rollouts, strict=True)]
        return np.array([verdict.value for verdict in score_all(self.reward, pairs)], np.float64)


def question_of(asked: Asked) -> Question:
    """The question as rewards and environments see it."""
    return Question(asked.number, asked.record.prompt, asked.record.answer, asked.record.data)
