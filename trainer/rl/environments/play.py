"""Plays many episodes at once over a rollout engine: one call of `generate` for the next turn of all that are not done.

Legend: P tokens before the model's first turn · G tokens behind them · L layers · K experts per token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.engine.request import Request, Sampling
from trainer.rl.environments.base import Environment, EnvironmentFailed, Session
from trainer.rl.environments.deadline import THREADS, Late, Raised, call_all
from trainer.rl.environments.dialogue import Dialogue
from trainer.rl.rewards.base import Question, Verdict, at_once
from trainer.rl.rollout.protocol import Rollout, RolloutEngine, other_prompt

T = TypeVar("T")
End = Literal["done", "turns", "length", "abort"]


@dataclass(frozen=True)
class Episode:
    """A conversation that was played. rollout: of all turns together, as of one answer; its log-probabilities are 0 and
    its versions those of the turn before where the model did not draw the token. end: "turns" where the budget of turns
    ended it, "length" where its tokens ran out, "abort" where the engine was paused: what there is of it."""

    question: Question
    rollout: Rollout
    verdict: Verdict
    end: End
    turns: int
    counts: Counter[str]


@dataclass
class _Playing:
    """An episode under way. ids: all of its tokens, prompt those before the first turn."""

    number: int
    question: Question
    sampling: Sampling
    session: Session
    prompt: tuple[int, ...]
    ids: list[int]
    drawn: list[bool] = field(default_factory=list)
    log_probs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    versions: list[npt.NDArray[np.int64]] = field(default_factory=list)
    routes: list[npt.NDArray[np.uint16]] | None = field(default_factory=list)
    turns: int = 0
    last: Rollout | None = None
    end: End | None = None

    def add_turn(self, found: Rollout) -> None:
        """Routes of a token are those of the first turn that has them: under which what follows it was drawn."""
        rows = sum(map(len, self.routes or ()))
        if found.routes is None:
            self.routes = None
        elif self.routes is not None:
            self.routes.append(found.routes[rows:])
        self.ids += found.ids
        self.drawn += [True] * len(found.ids)
        self.log_probs.append(found.log_probs)
        self.versions.append(found.versions)
        self.turns, self.last = self.turns + 1, found

    def add_replies(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.drawn += [False] * len(ids)
        self.log_probs.append(np.zeros(len(ids), np.float32))
        version = self.versions[-1][-1] if len(self.versions[-1]) else 0
        self.versions.append(np.full(len(ids), version, np.int64))

    def episode(self, verdict: Verdict) -> Episode:
        assert self.last is not None
        assert self.end is not None
        size = len(self.prompt)
        rollout = Rollout(
            self.prompt,
            tuple(self.ids[size:]),
            np.concatenate(self.log_probs),
            None if self.routes is None else np.concatenate(self.routes),
            np.concatenate(self.versions),
            self.last.finish,
            np.array(self.drawn, np.bool_),
        )
        counts = Counter({name: int(value) for name, value in self.session.counts().items()})
        return Episode(self.question, rollout, verdict, self.end, self.turns, counts)


def play(
    engine: RolloutEngine,
    environment: Environment,
    dialogue: Dialogue,
    asked: Sequence[tuple[Question, Sampling]],
    *,
    max_tokens: int,
    context: int,
    deadline_s: float,
    environment_s: float,
    more: Callable[[bool], bool] = bool,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    name: str = "engine",
) -> list[Episode]:
    """One episode for each question, in their order.

    Args:
        asked: questions, each with the way its turns are drawn; a question may be there several times.
        max_tokens: the most tokens of a turn. context: the most tokens of an episode, tools' answers included.
        deadline_s: seconds for the turns of one call of the engine. environment_s: for one step of one session.
        more: True if any rank that calls the engine together with this one has episodes under way.
        waiting: entered while sessions are waited for. name: of the engine in errors.
    Raises: EnvironmentFailed, which names environment and request, for one that raises or is late; RolloutError.
    """
    play_ = _Play(engine, environment, dialogue, max_tokens, context, deadline_s, environment_s, waiting, name)
    playing = play_.start(asked)
    while more(any(one.end is None for one in playing)):
        play_.turn([one for one in playing if one.end is None])
    return play_.finish(playing)


@dataclass(frozen=True)
class _Play:
    engine: RolloutEngine
    environment: Environment
    dialogue: Dialogue
    max_tokens: int
    context: int
    deadline_s: float
    environment_s: float
    waiting: Callable[[], AbstractContextManager[None]]
    engine_name: str

    def start(self, asked: Sequence[tuple[Question, Sampling]]) -> list[_Playing]:
        sessions = self._each("start", [question for question, _ in asked], self.environment.start)
        openings = self._each("open", [question for question, _ in asked], lambda q, s: s.messages, sessions)
        found = []
        for number, ((question, sampling), session, messages) in enumerate(zip(asked, sessions, openings, strict=True)):
            prompt = self.dialogue.open(messages, self.environment.tools)
            if len(prompt) >= self.context:
                allowed = f"at most {self.context - 1:,} tokens"
                text = (
                    f"environment {self.environment.name}, question {question.number}: the prompt has "
                    f"{len(prompt):,} tokens; use {allowed}"
                )
                raise EnvironmentFailed(text, where=self.environment.name, value=question.number, allowed=allowed)
            found.append(_Playing(number, question, sampling, session, tuple(prompt), list(prompt)))
        return found

    def turn(self, playing: Sequence[_Playing]) -> None:
        """Draw the next turn of each, and step its session."""
        requests = [
            Request(tuple(one.ids), min(self.max_tokens, self.context - len(one.ids)), one.sampling, self.dialogue.ends)
            for one in playing
        ]
        rollouts = self.engine.generate(requests, deadline_s=self.deadline_s)
        for one, found in zip(playing, rollouts, strict=True):
            if found.prompt != tuple(one.ids):
                raise other_prompt(self.engine_name, one.question.number)
            one.add_turn(found)
            if found.finish != "stop":
                one.end = found.finish
        stepping = [one for one in playing if one.end is None]
        tools = self.environment.tools
        said = [self.dialogue.read(found.ids, tools) for found in (one.last for one in stepping) if found is not None]
        replies = self._each(
            "step",
            [one.question for one in stepping],
            lambda _, pair: pair[0].session.step(pair[1]),
            [*zip(stepping, said, strict=True)],
        )
        for one, answered in zip(stepping, replies, strict=True):
            if not answered:
                one.end = "done"
            elif one.turns >= self.environment.turns:
                one.end = "turns"
            else:
                assert one.last is not None
                behind = self.dialogue.follow(one.last.ids, answered, tools)
                if len(one.ids) + len(behind) >= self.context:
                    one.end = "length"
                else:
                    one.add_replies(behind)

    def finish(self, playing: Sequence[_Playing]) -> list[Episode]:
        verdicts = self._each(
            "reward", [one.question for one in playing], lambda _, one: one.session.reward(), [*playing]
        )
        return [one.episode(verdict) for one, verdict in zip(playing, verdicts, strict=True)]

    def _each(
        self, what: str, questions: Sequence[Question], work: Callable[..., T], *more: Sequence[object]
    ) -> list[T]:
        """Call `work` for every question side by side, each within the environment's seconds."""
        calls = [partial(work, *values) for values in zip(questions, *more, strict=True)]
        name = self.environment.name
        try:
            with self.waiting():
                return call_all(calls, self.environment_s, at_once(self.environment, THREADS))
        except Late as late:
            number, allowed = questions[late.number].number, "a larger rl.environment_s"
            text = (
                f"environment {name}, question {number}: {what} was not done in {self.environment_s:g} s; "
                f"use {allowed}, or correct the environment"
            )
            raise EnvironmentFailed(text, where=name, value=number, allowed=allowed) from None
        except Raised as raised:
            number, error = questions[raised.number].number, raised.error
            if not isinstance(error, Exception):
                raise error from None
            text = f"environment {name}, question {number}: {what} failed: {type(error).__name__}: {error}"
            raise EnvironmentFailed(" ".join(text.split()), where=name, value=number) from error
