"""Environments of a question and some tools: the model calls tools until it answers without a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.chat.template import Message
from trainer.rl.environments.base import ERROR, Call, Counts, Malformed, Said
from trainer.rl.rewards.base import Question, Reward, Verdict
from trainer.rl.rewards.overlap import Overlap

CUT = " ... (cut)"
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "object": (dict,),
    "array": (list,),
}  # fmt: skip


class ToolError(Exception):
    """A call that a tool refuses; the model reads the text."""


@dataclass(frozen=True)
class Tool:
    """A function for the model. description: for the model. properties: JSON schemas of the arguments, all required.
    run: with the arguments by name; raises ToolError."""

    name: str
    description: str
    properties: Mapping[str, Mapping[str, Any]]
    run: Callable[..., str]

    @property
    def schema(self) -> Mapping[str, Any]:
        """OpenAI's form."""
        parameters = {"type": "object", "properties": dict(self.properties), "required": [*self.properties]}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise ToolError for missing and unknown arguments, and for those of another type."""
        if missing := self.properties.keys() - arguments.keys():
            raise ToolError(f"{min(missing)} is missing")
        for name, value in arguments.items():
            if name not in self.properties:
                raise ToolError(f"{self.name} has no argument {name}")
            kind = self.properties[name].get("type", "string")
            if not isinstance(value, _KINDS[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
                raise ToolError(f"{name} is not of type {kind}")


@dataclass(frozen=True)
class ToolEnvironment:
    """Implements `Environment`. reward: of the text of the turn without calls; it is 0 where there is none.

    turns: the most turns of the model. calls: the most of one turn, those behind them are refused. longest: characters
    of a tool's answer, the rest is cut. system: opens the conversation; empty: no such message. guide: the share of the
    reward that is for the first turn, as far as it has the characters of the record's `call`; the rest is for the
    answer, in the same proportion. Without it a model that has never called a tool learns to guess.
    """

    name: str
    offered: Sequence[Tool]
    reward: Reward
    turns: int = 4
    calls: int = 8
    longest: int = 2_000
    system: str = ""
    guide: float = 0.0

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        return [tool.schema for tool in self.offered]

    def start(self, question: Question) -> ToolSession:
        return ToolSession(self, question)


@dataclass
class ToolSession:
    """Implements `Session`."""

    environment: ToolEnvironment
    question: Question
    answer: str | None = None
    first: str | None = None
    _counts: Counts = field(default_factory=Counts)

    @property
    def messages(self) -> Sequence[Message]:
        prompt = self.question.prompt
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        system = self.environment.system
        return [{"role": "system", "content": system}, *asked] if system else asked

    def step(self, said: Said) -> Sequence[Message]:
        self.first = said.written if self.first is None else self.first
        if not said.calls:
            self.answer = said.text
            return []
        replies: list[Message] = []
        for place, call in enumerate(said.calls):
            name = call.tool if isinstance(call, Call) else ""
            replies.append({"role": "tool", "name": name, "content": self._reply(place, call)})
        return replies

    def _reply(self, place: int, call: Call | Malformed) -> str:
        self._counts.calls += 1
        tools = {tool.name: tool for tool in self.environment.offered}
        try:
            if place >= self.environment.calls:
                raise ToolError(f"at most {self.environment.calls} calls in a turn")
            if isinstance(call, Malformed):
                self._counts.malformed += 1
                raise ToolError("the call cannot be read")
            if call.tool not in tools:
                raise ToolError(f"there is no tool {call.tool[:40]}; use {', '.join(tools)}")
            tool = tools[call.tool]
            tool.check(call.arguments)
            found = tool.run(**call.arguments)
        except ToolError as error:
            self._counts.errors += 1
            return f"{ERROR}{error}"
        longest = self.environment.longest
        return found if len(found) <= longest else found[:longest] + CUT

    def reward(self) -> Verdict:
        guide = self.environment.guide
        verdict = Verdict(0.0, "no answer without a call")
        if self.answer is not None:
            verdict = self.environment.reward(self.question, self.answer)
        if not guide:
            return verdict
        wanted = replace(self.question, answer=self.question.data.get("call", ""))
        led = Overlap()(wanted, self.first).value if self.first else 0.0
        return Verdict(led * (guide + (1 - guide) * verdict.value), verdict.reason)

    def counts(self) -> Mapping[str, float]:
        return self._counts.as_mapping()
