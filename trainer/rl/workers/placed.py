"""Environments and rewards whose sessions are in workers."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from trainer.chat.template import Message
from trainer.rl.environments.base import Said
from trainer.rl.rewards.base import Question, Verdict
from trainer.rl.workers.body import AT_ONCE, Episode, Facts
from trainer.rl.workers.pool import Pool, Worker


@dataclass
class PlacedReward:
    """Implements `Reward`, `Counting` and `Closing`. seconds: for one answer, after which its worker is killed. facts:
    of an environment in the same workers, once these have started."""

    pool: Pool
    seconds: float
    facts: Facts = field(default_factory=Facts, init=False)

    def start_workers(self) -> None:
        """Raises WorkerError, and EnvironmentFailed or RewardError for what cannot be built."""
        self.facts = self.pool.start()

    @property
    def at_once(self) -> int:
        return self.pool.count * AT_ONCE

    def __call__(self, question: Question, answer: str) -> Verdict:
        about = f"question {question.number}"
        verdict: Verdict = self.pool.ask("grade", question, answer, about=about, seconds=self.seconds)[0]
        return verdict

    def counts(self) -> Mapping[str, float]:
        return self.pool.counts()

    def close(self) -> None:
        self.pool.close()


@dataclass
class PlacedEnvironment:
    """Implements `Environment`. reward: starts and ends the workers, and has their figures."""

    reward: PlacedReward
    _key: str = field(default_factory=lambda: uuid.uuid4().hex, init=False)
    _numbers: count[int] = field(default_factory=count, init=False)

    @property
    def name(self) -> str:
        return self.reward.facts.name

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return self.reward.facts.tools

    @property
    def turns(self) -> int:
        return self.reward.facts.turns

    @property
    def at_once(self) -> int:
        return self.reward.at_once

    def start(self, question: Question) -> PlacedSession:
        session = PlacedSession(self.reward.pool, Episode(f"{self._key}-{next(self._numbers)}", question))
        session.open()
        return session


@dataclass
class PlacedSession:
    """Implements `Session`. It is in one worker; where this one dies, another plays the turns so far again."""

    pool: Pool
    episode: Episode
    _worker: Worker | None = None
    _counts: Mapping[str, float] = field(default_factory=dict)

    def open(self) -> None:
        self.episode = replace(self.episode, opening=self._ask("start"))

    @property
    def messages(self) -> Sequence[Message]:
        return self.episode.opening

    def step(self, said: Said) -> Sequence[Message]:
        episode = self.episode
        replies: Sequence[Message] = self._ask("step", said)
        self.episode = replace(episode, said=[*episode.said, said], replies=[*episode.replies, replies])
        return replies

    def reward(self) -> Verdict:
        verdict: Verdict = self._ask("reward")
        return verdict

    def counts(self) -> Mapping[str, float]:
        return self._counts

    def _ask(self, what: str, *more: Said) -> Any:
        about = f"question {self.episode.question.number}"
        found, self._worker = self.pool.ask(what, self.episode, *more, about=about, prefer=self._worker)
        value, self._counts = found
        return value
