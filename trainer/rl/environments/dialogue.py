"""Turns as tokens: what opens a conversation, what the model said, and what follows it.

The model's own tokens are never written again: a turn is followed by the tokens of the tools' answers alone, so that
what is trained on is what was drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from trainer.chat.answers import Format, read_answer
from trainer.chat.errors import ChatError
from trainer.chat.template import ChatTemplate, Message
from trainer.rl.environments.base import ERROR, Call, Malformed, Said

STAND_IN = "STAND-IN-FOR-AN-ANSWER"
Tools = Sequence[Mapping[str, Any]]


class Dialogue(Protocol):
    """ends: tokens that end a turn."""

    @property
    def ends(self) -> frozenset[int]: ...

    def open(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """The tokens before the model's first turn. Raises ChatError."""
        ...

    def read(self, ids: Sequence[int], tools: Tools) -> Said:
        """A turn of the model. ids: with the token that ended it."""
        ...

    def follow(self, ids: Sequence[int], replies: Sequence[Message], tools: Tools) -> list[int]:
        """The tokens between a turn and the model's next one. Raises ChatError."""
        ...


class Conversation(Protocol):
    """A checkpoint's chat template with its tokenizer (`octavo serve` has one)."""

    @property
    def template(self) -> ChatTemplate: ...
    @property
    def format(self) -> Format: ...
    @property
    def ends(self) -> frozenset[int]: ...

    def ids_of(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class TemplateDialogue:
    """Implements `Dialogue` by a checkpoint's own chat template. values: names that the template reads, such as
    enable_thinking. also: further tokens that end a turn."""

    conversation: Conversation
    also: frozenset[int] = frozenset()
    values: Mapping[str, Any] | None = None

    @property
    def ends(self) -> frozenset[int]:
        return self.conversation.ends | self.also

    def open(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        return self.conversation.ids_of(self._render(messages, tools, add_generation_prompt=True))

    def read(self, ids: Sequence[int], tools: Tools) -> Said:
        written = self.conversation.decode([*ids[:-1]])
        format = self.conversation.format
        inside = format.thinking is not None and self._opens_thinking(tools)
        thinking, text, parts = read_answer(written, format, thinking=inside, tools=tools)
        calls: list[Call | Malformed] = [Call(part.name, json.loads(part.text)) for part in parts]
        if format.calls is not None and (at := text.find(format.calls.open)) >= 0:
            calls.append(Malformed(text[at:]))
        return Said(text, calls, thinking, written)

    def follow(self, ids: Sequence[int], replies: Sequence[Message], tools: Tools) -> list[int]:
        """The tokens that the template writes behind a stand-in for the turn. Raises ChatError for a template that does
        not write the turn as it is given, once."""
        asked: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": STAND_IN}]
        text = self._render([*asked, *replies], tools, add_generation_prompt=True)
        if text.count(STAND_IN) != 1:
            where, remedy = self.conversation.template.where, "a template that writes each turn once"
            raise ChatError(f"{where}: a turn cannot be continued; use {remedy}", where=where, allowed=remedy)
        behind = self.conversation.ids_of(text.partition(STAND_IN)[2])
        if ids and behind and ids[-1] == behind[0] and behind[0] in self.ends:
            return behind[1:]  # the model wrote it
        return behind

    def _opens_thinking(self, tools: Tools) -> bool:
        marks = self.conversation.format.thinking
        text = self._render([{"role": "user", "content": "?"}], tools, add_generation_prompt=True)
        return marks is not None and text.rstrip().endswith(marks[0])

    def _render(self, messages: Sequence[Message], tools: Tools, *, add_generation_prompt: bool) -> str:
        return self.conversation.template.render(
            messages, [*tools] or None, add_generation_prompt=add_generation_prompt, **(self.values or {})
        )


class Text(Protocol):
    """A tokenizer. before: ids that open every document."""

    @property
    def before(self) -> Sequence[int]: ...
    @property
    def eos_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def answer_text(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class InlineDialogue:
    """Implements `Dialogue` for models without a chat template: calls are in brackets in the text, `3+4=[3+4]`, and the
    tool's answer follows behind its own mark, `3+4=[3+4]7|`, before the model continues.

    There is one tool with one argument, which is what is in the brackets. A turn ends at the closing bracket, or at the
    end of the document. An error is an empty answer: a model without a template has not learned to read its words.
    """

    tokenizer: Text
    opening: str = "["
    closing: str = "]"
    after: str = "|"

    @cached_property
    def ends(self) -> frozenset[int]:
        return frozenset({self.tokenizer.eos_id, self._id_of(self.closing)})

    def open(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        return self.tokenizer.encode("".join(str(message.get("content") or "") for message in messages))

    def read(self, ids: Sequence[int], tools: Tools) -> Said:
        closed = bool(ids) and ids[-1] == self._id_of(self.closing)
        text = self.tokenizer.answer_text(ids)
        if not closed or not tools:
            return Said(text, written=text)
        before, opened, inside = text.removesuffix(self.closing).rpartition(self.opening)
        if not opened:
            return Said(text, [Malformed(text)], written=text)
        function = tools[0]["function"]
        (argument,) = function["parameters"]["properties"]
        return Said(before, [Call(function["name"], {argument: inside})], written=text)

    def follow(self, ids: Sequence[int], replies: Sequence[Message], tools: Tools) -> list[int]:
        contents = [str(reply.get("content") or "") for reply in replies]
        text = "".join(f"{'' if one.startswith(ERROR) else one}{self.after}" for one in contents)
        return self.tokenizer.encode(text)[len(self.tokenizer.before) :]

    def _id_of(self, mark: str) -> int:
        ids = self.tokenizer.encode(mark)[len(self.tokenizer.before) :]
        if len(ids) != 1:
            allowed = "a tokenizer with a token for it"
            raise ChatError(f"{mark} is {len(ids)} tokens; use {allowed}", where=mark, value=len(ids), allowed=allowed)
        return ids[0]
