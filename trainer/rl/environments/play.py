"""Plays many episodes at once over a rollout engine: one call of `generate` for the next turn of all that are not done.

Legend: P tokens before the model's first turn · G tokens behind them · L layers · K experts per token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.engine.request import Request, Sampling
from trainer.rl.environments.base import Environment, EnvironmentFailed, Session
from trainer.rl.environments.deadline import THREADS, Late, Raised, call_all
from trainer.rl.environments.dialogue import Dialogue
from trainer.rl.rewards.base import Question, Verdict, at_once
from trainer.rl.rollout.protocol import Finish, Rollout, RolloutEngine, other_prompt

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
class Playing:
    """An episode under way. ids: all of its tokens, prompt those before the first turn. turn: the place in ids where
    the last turn starts. finish: of its last part; a turn that was cut short, "abort", may continue."""

    question: Question
    sampling: Sampling
    session: Session
    prompt: tuple[int, ...]
    ids: list[int]
    drawn: list[bool] = field(default_factory=list)
    log_probs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    versions: list[npt.NDArray[np.int64]] = field(default_factory=list)
    routes: list[npt.NDArray[np.uint16]] = field(default_factory=list)
    routed: bool = True  # the last part has routes
    turns: int = 0
    turn: int = 0
    finish: Finish = "stop"
    end: End | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the model drew."""
        return sum(self.drawn)

    @property
    def ended(self) -> bool:
        return self.end is not None

    @property
    def last(self) -> Sequence[int]:
        """The tokens of the last turn."""
        return self.ids[self.turn :]

    def add_part(self, found: Rollout) -> None:
        """Take a turn, or what there is of it. Routes of a token are those of the first part that has them: under which
        what follows it was drawn."""
        if found.finish == "abort" and not found.ids:
            return
        if self.finish != "abort":
            self.turns, self.turn = self.turns + 1, len(self.ids)
        self.routed = found.routes is not None
        if found.routes is not None:
            self.routes.append(found.routes[sum(map(len, self.routes)) :])
        self.ids += found.ids
        self.drawn += [True] * len(found.ids)
        self.log_probs.append(found.log_probs)
        self.versions.append(found.versions)
        self.finish = found.finish

    def add_replies(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.drawn += [False] * len(ids)
        self.log_probs.append(np.zeros(len(ids), np.float32))
        version = self.versions[-1][-1] if len(self.versions[-1]) else 0
        self.versions.append(np.full(len(ids), version, np.int64))

    def whole(self) -> Rollout:
        """All tokens so far, as of one answer."""
        return Rollout(
            self.prompt,
            tuple(self.ids[len(self.prompt) :]),
            np.concatenate([np.zeros(0, np.float32), *self.log_probs]),
            np.concatenate(self.routes) if self.routed and self.routes else None,
            np.concatenate([np.zeros(0, np.int64), *self.versions]),
            self.finish,
            np.array(self.drawn, np.bool_),
        )

    def episode(self, verdict: Verdict) -> Episode:
        assert self.end is not None
        counts = Counter({name: int(value) for name, value in self.session.counts().items()})
        return Episode(self.question, self.whole(), verdict, self.end, self.turns, counts)


def parts_of(rollout: Rollout) -> Iterator[Rollout]:
    """The turns of a rollout of an episode, each an answer to what is before it. Its last one may be cut short."""
    size, count = len(rollout.prompt), len(rollout.ids)
    drawn = np.ones(count, np.bool_) if rollout.drawn is None else rollout.drawn
    bounds = [0, *(np.flatnonzero(np.diff(drawn)) + 1).tolist(), count]
    for start, end in pairwise(bounds):
        if end > start and drawn[start]:
            yield Rollout(
                (*rollout.prompt, *rollout.ids[:start]),
                rollout.ids[start:end],
                rollout.log_probs[start:end],
                None if rollout.routes is None else rollout.routes[: size + end - 1],
                rollout.versions[start:end],
                rollout.finish if end == count else "stop",
            )


@dataclass(frozen=True)
class Play:
    """Plays episodes, each to its end or from one answer of an engine to the next.

    max_tokens: the most tokens of a turn. context: the most tokens of an episode, tools' answers included.
    environment_s: seconds for one step of one session. engine_name: in errors. waiting: entered while sessions are
    waited for.

    Calls raise EnvironmentFailed, which names environment and request, for one that raises or is late.
    """

    environment: Environment
    dialogue: Dialogue
    max_tokens: int
    context: int
    environment_s: float
    engine_name: str = "engine"
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    def play(
        self,
        engine: RolloutEngine,
        asked: Sequence[tuple[Question, Sampling]],
        *,
        deadline_s: float,
        more: Callable[[bool], bool] = bool,
    ) -> list[Episode]:
        """One episode for each question, in their order. Raises RolloutError.

        Args:
            asked: questions, each with the way its turns are drawn; a question may be there several times.
            deadline_s: seconds for the turns of one call of the engine.
            more: True if any rank that calls the engine together with this one has episodes under way.
        """
        playing = self.start(asked)
        while more(any(not one.ended for one in playing)):
            under_way = [one for one in playing if not one.ended]
            found = engine.generate([self.request(one) for one in under_way], deadline_s=deadline_s)
            self.add([*zip(under_way, found, strict=True)])
            for one, answer in zip(under_way, found, strict=True):
                if answer.finish == "abort":
                    one.end = "abort"
        return self.finish(playing)

    def start(self, asked: Sequence[tuple[Question, Sampling]]) -> list[Playing]:
        sessions = self._each("start", [question for question, _ in asked], self.environment.start)
        openings = self._each("open", [question for question, _ in asked], lambda q, s: s.messages, sessions)
        found = []
        for (question, sampling), session, messages in zip(asked, sessions, openings, strict=True):
            prompt = self.dialogue.open(messages, self.environment.tools)
            if len(prompt) >= self.context:
                allowed = f"at most {self.context - 1:,} tokens"
                text = (
                    f"environment {self.environment.name}, question {question.number}: the prompt has "
                    f"{len(prompt):,} tokens; use {allowed}"
                )
                raise EnvironmentFailed(text, where=self.environment.name, value=question.number, allowed=allowed)
            found.append(Playing(question, sampling, session, tuple(prompt), list(prompt)))
        return found

    def request(self, one: Playing) -> Request:
        """The next turn of an episode, or the rest of one that was cut short."""
        there = len(one.last) if one.finish == "abort" else 0
        most = min(self.max_tokens - there, self.context - len(one.ids))
        return Request(tuple(one.ids), most, one.sampling, self.dialogue.ends)

    def add(self, answers: Sequence[tuple[Playing, Rollout]]) -> None:
        """Take the answers to requests, and step the sessions whose turns are done. Raises RolloutError for an answer
        to another prompt."""
        for one, found in answers:
            if found.prompt != tuple(one.ids):
                raise other_prompt(self.engine_name, one.question.number)
            one.add_part(found)
            if found.finish == "length":
                one.end = "length"
        stepping = [one for one, found in answers if found.finish == "stop"]
        tools = self.environment.tools
        said = [self.dialogue.read(one.last, tools) for one in stepping]
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
                behind = self.dialogue.follow(one.last, answered, tools)
                if len(one.ids) + len(behind) >= self.context:
                    one.end = "length"
                else:
                    one.add_replies(behind)

    def replay(self, played: Sequence[tuple[Playing, Rollout]]) -> list[bool]:
        """Bring episodes that were just started to where their rollouts stop, by stepping their sessions with the same
        turns. False for one whose environment did not answer as it had, which cannot be continued."""
        same = [one.prompt == rollout.prompt for one, rollout in played]
        turns = [[*parts_of(rollout)] for _, rollout in played]
        for turn in range(max(map(len, turns), default=0)):
            now = [at for at, of_one in enumerate(turns) if same[at] and turn < len(of_one)]
            for at in now:
                one, part = played[at][0], turns[at][turn]
                same[at] = not one.ended and part.prompt == tuple(one.ids)
            self.add([(played[at][0], turns[at][turn]) for at in now if same[at]])
        whole = [tuple(one.ids) == (*rollout.prompt, *rollout.ids) for one, rollout in played]
        return [a and b for a, b in zip(same, whole, strict=True)]

    def finish(self, playing: Sequence[Playing]) -> list[Episode]:
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
