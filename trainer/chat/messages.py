"""Messages of chats for a chat template, whatever their spelling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from parallel.errors import one_of
from trainer.chat.template import THINKING
from trainer.storage.json_text import read_json

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
CALL = "call"  # of ShareGPT: a turn whose text is the JSON of calls
# Names of roles in ShareGPT, in older files of OpenAI, of InternLM (environment) and of Llama (ipython); LLaMA-Factory
# gave theirs to calls and their results.
NAMES = {
    **{role: role for role in ROLES}, "human": "user", "gpt": "assistant", "chatgpt": "assistant",
    "model": "assistant", "function_call": CALL, "observation": "tool", "function": "tool",
    "function_response": "tool", "environment": "tool", "ipython": "tool",
}  # fmt: skip


class BadRecord(Exception):
    """A fault of a record, without its place."""


def read_messages(messages: Sequence[Any]) -> list[Message]:
    """OpenAI's messages with content as text, arguments of calls as objects and thinking as `reasoning_content`.

    Raises BadRecord."""
    return [read_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def read_message(turn: Any, at: str) -> Message:
    """One message, in OpenAI's spelling or in ShareGPT's. at: its place in the record. Raises BadRecord."""
    if not isinstance(turn, Mapping):
        raise BadRecord(f"{at} is {kind_of(turn)}, not an object")
    spelled, named = _one_of_two(turn, "role", "from", at)
    role = NAMES.get(named) if isinstance(named, str) else None
    if role is None:
        raise BadRecord(f"{at}.{spelled} is {_shown(named)}; use {one_of(ROLES if spelled == 'role' else NAMES)}")
    spelled, value = _one_of_two(turn, "content", "value", at)
    message: Message = {
        name: item for name, item in turn.items() if item is not None and name not in ("from", "value", "content")
    }
    if role == CALL:
        calls = json_value(value, f"{at}.{spelled}")
        role, value, message["tool_calls"] = "assistant", None, calls if isinstance(calls, list) else [calls]
    message["role"] = role
    content, thinking = _content(value, f"{at}.{spelled}")
    for name in THINKING:
        given = message.pop(name, None)
        if given is not None and not isinstance(given, str):
            raise BadRecord(f"{at}.{name} is {kind_of(given)}, not a text")
        thinking = thinking or given
    if thinking:
        message[THINKING[0]] = thinking
    calls = _calls(message, at)
    if calls:
        message["tool_calls"] = calls
    if calls and role != "assistant":
        raise BadRecord(f"{at} has tool_calls, but its role is {role}; only the assistant calls tools")
    if content is None and not calls and not (thinking and role == "assistant"):
        raise BadRecord(f"{at}.{spelled} is missing")
    if content is not None or not calls:
        message["content"] = content or ""
    _put_weight(message, at)
    return message


def _one_of_two(turn: Mapping[str, Any], usual: str, other: str, at: str) -> tuple[str, Any]:
    """The name and the value of a key that has two spellings."""
    given = [name for name in (usual, other) if turn.get(name) is not None]
    if len(given) == 2 and turn[usual] != turn[other]:
        raise BadRecord(f"{at} has {usual} and {other}; keep one of them")
    name = given[0] if given else usual
    return name, turn.get(name)


def _content(content: Any, at: str) -> tuple[str | None, str | None]:
    """Text and thinking of a message's content: a text, or parts that are texts and thinking."""
    if content is None or isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        raise BadRecord(f"{at} is {kind_of(content)}, not a text or a list of parts")
    texts: list[str] = []
    thoughts: list[str] = []
    for place, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping):
            text = next((part[name] for name in (kind, "text", *THINKING) if isinstance(part.get(name), str)), None)
        if kind not in ("text", *THINKING) or text is None:
            raise BadRecord(
                f"{at}[{place}] is a part of type {_shown(kind)}; parts are texts and thinking: images and "
                "signals of chats are not trained on"
            )
        (texts if kind == "text" else thoughts).append(text)
    return "".join(texts), "\n".join(thoughts) or None


def _calls(message: Message, at: str) -> list[Any]:
    calls, old = message.pop("tool_calls", None) or [], message.pop("function_call", None)
    if not isinstance(calls, list):
        raise BadRecord(f"{at}.tool_calls is {kind_of(calls)}, not a list")
    return [_call(call, f"{at}.tool_calls[{n}]") for n, call in enumerate([*calls, *([old] if old else [])])]


def _call(call: Any, at: str) -> Message:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRecord(f"{at} has no function with a name")
    arguments = function.get("arguments", {})
    # OpenAI's spelling is a text; templates write the object themselves.
    arguments = json_value("{}" if arguments == "" else arguments, f"{at}.function.arguments")
    if not isinstance(checked_json(arguments, f"{at}.function.arguments"), Mapping):
        raise BadRecord(f"{at}.function.arguments is {kind_of(arguments)}, not an object")
    more = {name: value for name, value in call.items() if name in ("id", "type") and value is not None}
    return {"type": "function", **more, "function": {"name": function["name"], "arguments": arguments}}


def _put_weight(message: Message, at: str) -> None:
    """`weight` as OpenAI's fine-tuning files have it, 0 or 1; `loss` as InternLM's, true or false."""
    loss = message.pop("loss", None)
    if loss is not None and not isinstance(loss, bool):
        raise BadRecord(f"{at}.loss is {_shown(loss)}; use true or false")
    if loss is not None:
        message["weight"] = int(loss)
    if message.get("weight", 1) not in (0, 1):
        raise BadRecord(f"{at}.weight is {_shown(message['weight'])}; use 0 or 1")


def json_value(value: Any, at: str) -> Any:
    """The value of a text of JSON; other values as they are. Raises BadRecord."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        raise BadRecord(f"{at} is a text that is not JSON ({error})") from error


def checked_json(value: Any, at: str) -> Any:
    """A value that templates write as JSON. Raises BadRecord for what JSON and UTF-8 cannot write, such as NaN, a
    number that is too large, half of a character, or a date of Parquet."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRecord(f"{at} cannot be written as JSON ({error})") from error
    return value


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)


def kind_of(value: Any) -> str:
    names = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
