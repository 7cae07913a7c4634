"""The state of a worker: an environment or a reward, and the sessions of its episodes. No torch here.

A request has all that its session was given before, so any worker can answer it: one that does not have the session
plays it again first, and refuses where the answers are others than the model has read.
"""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.chat.template import Message
from trainer.rl.environments.base import Said, Session
from trainer.rl.environments.build import read_environment
from trainer.rl.environments.tools import ToolEnvironment
from trainer.rl.rewards.base import Question, Reward, Verdict, build_reward
from trainer.rl.tally import Tally

HELD = 10_000  # sessions of a worker; the oldest ones are played again when they are asked for
AT_ONCE = 16  # requests that a worker answers side by side


@dataclass(frozen=True)
class Given:
    """The options of a worker. environment: as of `rl.environment`; empty: the reward alone. reward: as of `rl.reward`.
    root: of the paths in them, on the worker's machine."""

    environment: str
    reward: str
    root: Path


@dataclass(frozen=True)
class Facts:
    """An environment's, which are the same for all of its sessions; empty for a reward alone."""

    name: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    turns: int = 0


@dataclass(frozen=True)
class Reply:
    """value: the result, or error: what was raised. figures: what the reward counted since the reply before."""

    value: Any
    error: Exception | None
    figures: Counter[str]


@dataclass(frozen=True)
class Episode:
    """A session as its caller knows it. key: differs from those of all other sessions. said: the model's turns so far,
    each answered by `replies`, behind `opening`."""

    key: str
    question: Question
    opening: Sequence[Message] = ()
    said: Sequence[Said] = ()
    replies: Sequence[Sequence[Message]] = ()


class Differs(Exception):
    """An environment that answers the same turns in another way when it is played again."""


@dataclass
class _Open:
    session: Session
    turns: int


@dataclass
class Body:
    """Answers requests, on several threads at a time."""

    given: Given
    _environment: ToolEnvironment | None = None
    _reward: Reward | None = None
    _tally: Tally | None = None
    _open: dict[str, _Open] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, what: str, arguments: Sequence[Any]) -> Reply:
        """The result of one of the methods below."""
        try:
            value, error = getattr(self, what)(*arguments), None
        except Exception as failure:
            value, error = None, _portable(failure)
        with self._lock:
            figures = self._tally.since() if self._tally else Counter[str]()
        return Reply(value, error, figures)

    def build(self) -> Facts:
        """Raises EnvironmentFailed and RewardError."""
        given = self.given
        if given.environment:
            self._environment = made = read_environment(given.environment, given.reward, given.root)
            self._reward = made.reward
        else:
            self._reward = build_reward(given.reward)
        self._tally = Tally(self._reward)
        return Facts(made.name, made.tools, made.turns) if given.environment else Facts()

    def grade(self, question: Question, answer: str) -> Verdict:
        assert self._reward is not None
        return self._reward(question, answer)

    def start(self, episode: Episode) -> tuple[Sequence[Message], Mapping[str, float]]:
        """The messages with which it opens, and the session's figures."""
        session = self._play(episode)
        return self._keep(episode.key, session, 0), session.counts()

    def step(self, episode: Episode, said: Said) -> tuple[Sequence[Message], Mapping[str, float]]:
        """The answers to the turn, and the session's figures."""
        session = self._session(episode)
        replies = session.step(said)
        self._keep(episode.key, session, len(episode.said) + 1)
        return replies, session.counts()

    def reward(self, episode: Episode) -> tuple[Verdict, Mapping[str, float]]:
        session = self._session(episode)
        verdict = session.reward()
        self._keep(episode.key, session, len(episode.said))
        return verdict, session.counts()

    def _session(self, episode: Episode) -> Session:
        """The session behind all turns of the episode."""
        with self._lock:
            found = self._open.pop(episode.key, None)
        if found is not None and found.turns == len(episode.said):
            return found.session
        session = self._play(episode)
        if [*session.messages] != [*episode.opening]:
            raise Differs("it opens differently when it is played again")
        for number, (said, replies) in enumerate(zip(episode.said, episode.replies, strict=True), 1):
            if [*session.step(said)] != [*replies]:
                raise Differs(f"turn {number} is answered differently when it is played again")
        return session

    def _play(self, episode: Episode) -> Session:
        assert self._environment is not None
        return self._environment.start(episode.question)

    def _keep(self, key: str, session: Session, turns: int) -> Sequence[Message]:
        with self._lock:
            self._open[key] = _Open(session, turns)
            while len(self._open) > HELD:
                del self._open[next(iter(self._open))]
        return session.messages


def _portable(error: Exception) -> Exception:
    """The error, or its text where it cannot travel to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
