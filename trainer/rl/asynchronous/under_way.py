"""Rollouts that are under way or done, each with the number `question * rl.group_size + member` of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from trainer.data.questions.asked import Asked
from trainer.engine.request import Request, Sampling
from trainer.rl.asynchronous.drawn import Drawn
from trainer.rl.draws import question_of
from trainer.rl.environments.play import Episode, Play, Playing
from trainer.rl.rollout.protocol import Rollout, RolloutError, other_prompt

Ask = Callable[[int], tuple[Asked, Sampling]]  # the question of a number, and how its rollout is drawn


class Draft(Protocol):
    """A rollout with the parts of it that are there. tokens: that were drawn. ended: there will not be more."""

    @property
    def tokens(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    def whole(self) -> Rollout:
        """All parts as one rollout."""
        ...


D = TypeVar("D", bound=Draft)


@dataclass(frozen=True)
class Outcome:
    """A rollout that is done. episode: where it is one."""

    rollout: Rollout
    episode: Episode | None = None


class UnderWay(ABC, Generic[D]):
    """Rollouts of the process that asks an engine for them, from their first request until they are trained. size: of
    a group. name: of the engine in errors. discard: those that were stopped are drawn anew.

    discarded: tokens of these. Calls of `add` for different numbers may come from several threads."""

    def __init__(self, ask: Ask, size: int, name: str, *, discard: bool) -> None:
        self.ask, self.size, self.name, self.discard = ask, size, name, discard
        self.discarded = 0
        self._drafts: dict[int, D] = {}
        self._stored: dict[int, Rollout] = {}
        self._running: set[int] = set()

    def open(self, numbers: Iterable[int]) -> dict[int, Request]:
        """Requests for what these rollouts lack, but for those that are running."""
        wanted = sorted(number for number in numbers if number not in self._running)
        self._create([number for number in wanted if number not in self._drafts])
        if self.discard:
            cut = [number for number in wanted if not self.ended(number) and self._drafts[number].tokens]
            self.discarded += sum(self._drafts[number].tokens for number in cut)
            self._create(cut)
        new = {number: self._request(self._drafts[number]) for number in wanted if not self.ended(number)}
        self._running |= new.keys()
        return new

    def add(self, answers: Mapping[int, Rollout]) -> dict[int, Request]:
        """Take answers to requests. Returns what is asked next of these rollouts. Raises RolloutError for an answer to
        another prompt, and EnvironmentFailed."""
        self._take({number: self._drafts[number] for number in answers}, answers)
        more = {
            number: self._request(self._drafts[number])
            for number, one in answers.items()
            if one.finish != "abort" and not self.ended(number)
        }
        self._running -= answers.keys() - more.keys()
        return more

    def stop(self) -> None:
        """Count all requests as stopped."""
        self._running.clear()

    def ended(self, number: int) -> bool:
        return self._drafts[number].ended

    def waits(self, number: int) -> bool:
        """Return True for a rollout that will get more without another `open`."""
        return not self.ended(number) and number in self._running

    def finish(self, numbers: Sequence[int]) -> dict[int, Outcome]:
        """Forget these rollouts. Raises RolloutError for one that was cut short by something else than `stop`."""
        if cut := [number for number in numbers if not self.ended(number)]:
            question = cut[0] // self.size
            allowed = "check that nothing else pauses it or aborts its requests"
            text = f"{self.name}: {len(cut)} rollouts of this round were cut short, the first of question {question}"
            raise RolloutError(f"{text}; {allowed}", where=self.name, value=question, allowed=allowed)
        return dict(zip(numbers, self._finish([self._drafts.pop(number) for number in numbers]), strict=True))

    def held(self) -> dict[int, Rollout]:
        """Those with tokens, as they are now."""
        drafts = {number: one.whole() for number, one in self._drafts.items() if one.tokens}
        return self._stored | drafts

    def store(self, held: Mapping[int, Rollout]) -> None:
        """Continue with these where they are opened."""
        self._stored |= held

    def counts(self) -> dict[str, float]:
        """Numbers for the record since the last call."""
        drafts, discarded, self.discarded = [*self._drafts.values()], self.discarded, 0
        ended = sum(one.ended for one in drafts)
        return {"discarded_tokens": discarded, "unfinished": len(drafts) - ended, "waiting": ended}

    def _create(self, numbers: Sequence[int]) -> None:
        drafts = self._make([self.ask(number) for number in numbers])
        self._drafts |= dict(zip(numbers, drafts, strict=True))
        if stored := [number for number in numbers if number in self._stored]:
            held = {number: self._stored.pop(number) for number in stored}
            again = self._continue([(self._drafts[number], held[number]) for number in stored])
            changed = [number for number, same in zip(stored, again, strict=True) if not same]
            self.discarded += sum(map(_drawn, (held[number] for number in changed)))
            self._create(changed)

    @abstractmethod
    def _make(self, asked: Sequence[tuple[Asked, Sampling]]) -> list[D]:
        """Rollouts without a token."""

    @abstractmethod
    def _continue(self, stored: Sequence[tuple[D, Rollout]]) -> list[bool]:
        """Bring rollouts without a token to what a checkpoint has. False for those that cannot be continued."""

    @abstractmethod
    def _request(self, one: D) -> Request: ...

    @abstractmethod
    def _take(self, drafts: Mapping[int, D], answers: Mapping[int, Rollout]) -> None:
        """Both have the same numbers."""

    @abstractmethod
    def _finish(self, drafts: Sequence[D]) -> list[Outcome]: ...


AnyUnderWay = UnderWay[Any]


class Answers(UnderWay[Drawn]):
    """Rollouts of one turn. ends: tokens that end one."""

    def __init__(self, ask: Ask, size: int, name: str, *, discard: bool, max_tokens: int, ends: frozenset[int]) -> None:
        super().__init__(ask, size, name, discard=discard)
        self.max_tokens, self.ends = max_tokens, ends

    def _make(self, asked: Sequence[tuple[Asked, Sampling]]) -> list[Drawn]:
        return [Drawn(tuple(question.prompt), sampling) for question, sampling in asked]

    def _continue(self, stored: Sequence[tuple[Drawn, Rollout]]) -> list[bool]:
        """The questions may have been changed, as `data.allow_changed` allows."""
        same = [one.prompt == rollout.prompt for one, rollout in stored]
        for (one, rollout), alike in zip(stored, same, strict=True):
            if alike:
                one.add(rollout)
        return same

    def _request(self, one: Drawn) -> Request:
        return one.request(self.max_tokens, self.ends)

    def _take(self, drafts: Mapping[int, Drawn], answers: Mapping[int, Rollout]) -> None:
        for number, one in drafts.items():
            try:
                one.add(answers[number])
            except ValueError:
                raise other_prompt(self.name, number // self.size) from None

    def _finish(self, drafts: Sequence[Drawn]) -> list[Outcome]:
        return [Outcome(one.whole()) for one in drafts]


class Conversations(UnderWay[Playing]):
    """Episodes in an environment. plays: moves them on."""

    def __init__(self, ask: Ask, size: int, name: str, *, discard: bool, plays: Play) -> None:
        super().__init__(ask, size, name, discard=discard)
        self.plays = plays

    def _make(self, asked: Sequence[tuple[Asked, Sampling]]) -> list[Playing]:
        return self.plays.start([(question_of(question), sampling) for question, sampling in asked])

    def _continue(self, stored: Sequence[tuple[Playing, Rollout]]) -> list[bool]:
        """Sessions are not in a checkpoint: they are stepped with the same turns. One that answers otherwise than
        before is played from its start."""
        return self.plays.replay(stored)

    def _request(self, one: Playing) -> Request:
        return self.plays.request(one)

    def _take(self, drafts: Mapping[int, Playing], answers: Mapping[int, Rollout]) -> None:
        self.plays.add([(one, answers[number]) for number, one in drafts.items()])

    def _finish(self, drafts: Sequence[Playing]) -> list[Outcome]:
        return [Outcome(one.rollout, one) for one in self.plays.finish(drafts)]


def _drawn(rollout: Rollout) -> int:
    """The number of tokens that the engine drew."""
    return len(rollout.ids) if rollout.drawn is None else int(rollout.drawn.sum())
