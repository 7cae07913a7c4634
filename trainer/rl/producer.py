"""Groups of rollouts for the next steps: questions are asked, answers are worth something.

`Synchronous` produces when it is asked, and training waits. An asynchronous producer has the same method `produce`,
takes what an engine beside training has finished by then, oldest first, and starts `engine.load` with the newest
weights when they are older than it allows; every token's version is in its `Rollout`, so that the record and the masks
of `trainer.objectives.policy` need no change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Groups of one step on this rank, all of them, and the seconds that they took here, by purpose."""

    groups: Sequence[Group]
    seconds: Mapping[str, float]


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
        requests = [
            self._request(one, sample, member)
            for one, sample in zip(asked, samples, strict=True)
            for member in range(size)
        ]
        started = time.perf_counter()
        rollouts = self.engine.generate(requests, deadline_s=self.cfg.deadline_s)
        generated = time.perf_counter()
        values = self._score([one for one in asked for _ in range(size)], rollouts)
        seconds = {"rollout": generated - started, "reward": time.perf_counter() - generated}
        groups = [
            Group(sample, one, rollouts[at * size : (at + 1) * size], values[at * size : (at + 1) * size])
            for at, (sample, one) in enumerate(zip(samples, asked, strict=True))
        ]
        shared = {name: value / steps for name, value in seconds.items()}
        return [Produced(groups[step * mine : (step + 1) * mine], shared) for step in range(steps)]

    def answer(self, asked: Sequence[Asked]) -> tuple[list[Rollout], np.ndarray]:
        """The most likely answers to questions, and what each is worth [questions]."""
        requests = [self._request(one, 0, 0, temperature=0.0) for one in asked]
        rollouts = self.engine.generate(requests, deadline_s=self.cfg.deadline_s)
        return rollouts, self._score(asked, rollouts)

    def _request(self, asked: Asked, sample: int, member: int, temperature: float = 1.0) -> Request:
        seed = int(mix64(self.seed, SAMPLING, sample, member)[0] >> np.uint64(1))
        end = frozenset({self.questions.tokenizer.eos_id})
        return Request(asked.prompt, self.cfg.max_tokens, Sampling(temperature, seed=seed), end)

    def _score(self, asked: Sequence[Asked], rollouts: Sequence[Rollout]) -> np.ndarray:
        decode = self.questions.tokenizer.decode
        pairs = [
            (Question(one.number, one.record.prompt, one.record.answer, one.record.data), decode([*rollout.ids]))
            for one, rollout in zip(asked, rollouts, strict=True)
        ]
        return np.array([verdict.value for verdict in score_all(self.reward, pairs)], np.float64)
