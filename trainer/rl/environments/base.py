"""The protocol of environments.

    session = environment.start(question)
    said = ...                              # the model continues session.messages
    replies = session.step(said)            # tools answer, or nothing: the session is done
    ...
    verdict = session.reward()

A session never raises for what a model wrote: a call that cannot be read, an unknown tool and a failing tool are
answered with an error for the model to read, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from parallel.errors import UserError
from trainer.chat.template import Message
from trainer.rl.rewards.base import Question, Verdict

ERROR = "error: "  # the first characters of what answers a call that failed


class EnvironmentFailed(UserError):
    """An environment that cannot be built, that raised, or that was not done by its deadline. `where` names the
    environment, `value` the request."""


@dataclass(frozen=True)
class Call:
    """A call of a tool that could be read. arguments: an object of JSON."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Malformed:
    """A call that cannot be read. text: with its marks."""

    text: str


@dataclass(frozen=True)
class Said:
    """A turn that the model ended. text: without thinking and calls. calls: in the order in which they were written.
    written: all of it, as the model wrote it."""

    text: str
    calls: Sequence[Call | Malformed] = ()
    thinking: str = ""
    written: str = ""


class Session(Protocol):
    """One episode. messages: with which it opens, in OpenAI's form."""

    @property
    def messages(self) -> Sequence[Message]: ...

    def step(self, said: Said) -> Sequence[Message]:
        """The messages that follow a turn that the model ended; none: the session is done."""
        ...

    def reward(self) -> Verdict:
        """The value of the session as it is now, also before it is done."""
        ...

    def counts(self) -> Mapping[str, float]:
        """Figures of the session by name: calls, malformed calls, errors of tools."""
        ...


class Environment(Protocol):
    """A kind of episode. tools: as JSON schemas of functions, in OpenAI's form. turns: the most turns of the model."""

    @property
    def name(self) -> str: ...
    @property
    def tools(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def turns(self) -> int: ...

    def start(self, question: Question) -> Session: ...


@dataclass
class Counts:
    """Figures that sessions keep."""

    calls: int = 0
    malformed: int = 0
    errors: int = 0
    extra: dict[str, float] = field(default_factory=dict)

    def as_mapping(self) -> Mapping[str, float]:
        return {"calls": self.calls, "malformed": self.malformed, "errors": self.errors, **self.extra}
