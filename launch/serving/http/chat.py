"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.serving.conversation import Conversation, Opened
from launch.serving.http import logprobs, media
from launch.serving.http.bodies import Chat as Body
from launch.serving.http.completions import usage
from launch.serving.http.errors import ApiError, refused
from launch.serving.http.model import Served
from launch.serving.http.worker import Answers
from parallel.errors import UserError
from trainer.chat.answers import AnswerReader, Part
from trainer.chat.errors import ChatError
from trainer.chat.messages import BadRecord, read_messages
from trainer.engine.media import Medium
from trainer.engine.request import Completion, Request

NAMES = {"alternatives": "top_logprobs", "prompt": "messages"}
OURS = ("messages", "tools", "add_generation_prompt")  # names that a template gets from elsewhere


@dataclass(frozen=True)
class Asked:
    """A request that was checked. thinking: the prompt ends inside the mark of thinking. tools: that may be called."""

    served: Served
    body: Body
    requests: Sequence[Request]
    thinking: bool
    tools: Sequence[Mapping[str, Any]]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def _reader(self) -> AnswerReader:
        assert self.served.conversation is not None
        return AnswerReader(self.served.conversation.format, thinking=self.thinking, tools=self.tools)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served.name}

    async def whole(self, answers: Answers) -> dict[str, Any]:
        done = await answers.finished()
        choices = [self._choice(place, one) for place, one in enumerate(done)]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(done, len(done))}

    def _choice(self, place: int, done: Completion) -> dict[str, Any]:
        reader = self._reader()
        parts = [*reader.push(done.text or ""), *reader.finish()]
        calls = [part for part in parts if part.kind == "call"]
        text, thinking = (_joined(parts, "text"), _joined(parts, "thinking"))
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if thinking:
            message["reasoning_content"] = thinking
        if calls:
            message["tool_calls"] = [_call(part) for part in calls]
        found = None
        if self.body.logprobs:
            found = logprobs.of_chat(self.served.tokenizer, logprobs.places_of(done.ids, done.scores))
        finish = "tool_calls" if calls and done.finish == "stop" else done.finish
        return {"index": place, "message": message, "logprobs": found, "finish_reason": finish}

    async def stream(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]:
        """Chunks; each answer opens with its role. A call comes whole."""
        readers = [self._reader() for _ in self.requests]
        calls = [0] * len(self.requests)
        done: dict[int, Completion] = {}
        for place in range(len(self.requests)):
            yield self._chunk(place, {"role": "assistant", "content": ""})
        async for place, token, finished in answers:
            parts = readers[place].push(token.text or "") if token is not None else []
            if finished is not None:
                parts += readers[place].finish()
                done[place] = finished
            found = None
            if self.body.logprobs and token is not None:
                found = logprobs.of_chat(self.served.tokenizer, [logprobs.place_of(token)])
            for part in parts or ([Part("text", "")] if found else []):
                yield self._chunk(place, _delta(part, calls[place]), found)
                calls[place] += part.kind == "call"
                found = None
            if finished is not None:
                finish = "tool_calls" if calls[place] and finished.finish == "stop" else finished.finish
                yield self._chunk(place, {}, None, finish)
        if self.body.with_usage:
            used = usage([done[place] for place in sorted(done)], len(done))
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": used}

    def _chunk(
        self, place: int, delta: dict[str, Any], found: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": place, "delta": delta, "logprobs": found, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}


def _joined(parts: Sequence[Part], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)


def _call(part: Part) -> dict[str, Any]:
    function = {"name": part.name, "arguments": part.text}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _delta(part: Part, calls: int) -> dict[str, Any]:
    """calls: before this part."""
    if part.kind == "call":
        return {"tool_calls": [{"index": calls, **_call(part)}]}
    return {"reasoning_content" if part.kind == "thinking" else "content": part.text}


def ask(served: Served, body: Body) -> Asked:
    """Raises ApiError."""
    served.require(body.model)
    conversation = served.conversation
    if conversation is None:
        text = f"{served.name} has no chat template; use /v1/completions, or start the server with --chat-template"
        raise ApiError(400, text, code="no_chat_template")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    try:
        opened, ids, read = _prompt(served, conversation, body)
    except BadRecord as error:
        raise ApiError(400, str(error), param=str(error).partition(" ")[0]) from None
    except UserError as error:
        raise refused(error) from None
    room = served.context - len(ids)
    wanted, names = body.max_tokens, NAMES
    if body.max_completion_tokens is not None:
        wanted, names = body.max_completion_tokens, {**NAMES, "max_tokens": "max_completion_tokens"}
    requests = [
        served.request(
            ids,
            body,
            max_tokens=max(1, room) if wanted is None else wanted,
            number=number,
            alternatives=(body.top_logprobs or 0),
            ends=conversation.ends,
            media=read,
            names=names,
        )
        for number in range(body.answers)
    ]
    return Asked(served, body, requests, opened.thinking, _tools(body))


def _prompt(served: Served, conversation: Conversation, body: Body) -> tuple[Opened, list[int], list[Medium]]:
    """The conversation up to where the assistant writes, its token ids, and its media."""
    tools, values, templates = _tools(body), _values(body), conversation.template.texts
    if not media.has_media(body.messages):
        opened = conversation.open(_messages(body.messages, templates), tools, **values)
        return opened, conversation.ids_of(opened.text), []
    found = media.take(body.messages, served.source, served.media, most=served.limits.body)
    plain = _messages(found.plain, templates)
    native = [
        {**message, "content": given["content"]} if isinstance(given["content"], list) else message
        for message, given in zip(plain, found.native, strict=True)
    ]
    for messages in (native, plain):
        try:
            opened = conversation.open(messages, tools, **values)
        except ChatError:
            if messages is plain:
                raise
            continue  # a template that takes texts alone
        if messages is plain or _has_places(opened.text, found.media, served):
            break
    return opened, served.source.prompt(opened.text, found.media, opening=False), found.media


def _has_places(text: str, given: Sequence[Medium], served: Served) -> bool:
    """Return True if a text has a placeholder for each medium."""
    ids, kinds = served.tokenizer.encode(text), served.source.rules.kinds
    return all(ids.count(kind.token) == sum(medium.kind == name for medium in given) for name, kind in kinds.items())


def _messages(given: Sequence[Any], templates: Mapping[str, str]) -> list[dict[str, Any]]:
    """OpenAI's `developer` is the system to templates that do not know it, which would leave the message out."""
    messages = read_messages(given)
    known = any("developer" in template for template in templates.values())
    for message in messages:
        if message["role"] == "developer" and not known:
            message["role"] = "system"
    return messages


def _tools(body: Body) -> list[dict[str, Any]]:
    """The tools that may be called. Raises ApiError."""
    if body.tool_choice not in (None, "auto", "none"):
        text = f'tool_choice={body.tool_choice!r}: the model cannot be made to call a tool; use "auto" or "none"'
        raise ApiError(400, text, param="tool_choice")
    if body.parallel_tool_calls is False and body.tools and body.tool_choice != "none":
        text = "parallel_tool_calls=false: an answer may hold several calls; leave it out, or use true"
        raise ApiError(400, text, param="parallel_tool_calls")
    for place, tool in enumerate(body.tools or ()):
        function = tool.get("function") if tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            where = f"tools[{place}]"
            raise ApiError(400, f'{where}: give {{"type": "function", "function": {{"name": ...}}}}', param=where)
    return [] if body.tool_choice == "none" else body.tools or []


def _values(body: Body) -> dict[str, Any]:
    """Names that the template reads. Raises ApiError for one that it gets from elsewhere."""
    values = dict(body.chat_template_kwargs or {})
    if taken := [name for name in OURS if name in values]:
        text = f"chat_template_kwargs.{taken[0]}: the server sets this; leave it out"
        raise ApiError(400, text, param=f"chat_template_kwargs.{taken[0]}")
    for name in ("enable_thinking", "reasoning_effort"):
        if (value := getattr(body, name)) is not None:
            values.setdefault(name, value)
    return values
