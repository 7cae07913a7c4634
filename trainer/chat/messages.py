"""One record of chats as messages for a chat template, whatever its spelling.

OpenAI    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}
ShareGPT  {"conversations": [{"from": "human", "value": "..."}, ...], "system": "...", "tools": "..."}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from parallel.errors import one_of
from trainer.chat.template import THINKING
from trainer.storage.json_text import read_json

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SAME = {"function": "tool"}  # older names of OpenAI's roles
# ShareGPT's names, and those that LLaMA-Factory gave to calls and their results.
SHAREGPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "model": "assistant", "function_call": "call", "observation": "tool", "tool": "tool",
    "function_response": "tool",
}  # fmt: skip
VALUES = "chat_template_kwargs"  # of a record: names that its template reads


class BadRecord(Exception):
    """A fault of a record, without its place."""


def read_record(row: Any) -> tuple[list[Message], list[Any] | None, dict[str, Any]]:
    """Messages, tools and template values of a record. Raises BadRecord."""
    if not isinstance(row, Mapping):
        raise BadRecord(f"it is {_kind(row)}, not an object with messages or conversations")
    key = next((name for name in ("messages", "conversations") if row.get(name) is not None), None)
    if key is None:
        raise BadRecord(f"it has neither messages nor conversations, but {one_of(map(str, row)) or 'nothing'}")
    turns = _json(row[key], key)
    if not isinstance(turns, list):
        raise BadRecord(f"{key} is {_kind(turns)}, not a list")
    found = [_message(turn, f"{key}[{place}]") for place, turn in enumerate(turns)]
    if isinstance(row.get("system"), str) and row["system"] and not (found and found[0]["role"] == "system"):
        found.insert(0, {"role": "system", "content": row["system"]})
    tools = _json(row.get("tools") or None, "tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRecord("tools is not a list of JSON schemas of functions")
    values = _json(row.get(VALUES) or {}, VALUES)
    if not isinstance(values, Mapping):
        raise BadRecord(f"{VALUES} is {_kind(values)}, not an object")
    return found, tools or None, dict(values)


def read_messages(messages: Sequence[Any]) -> list[Message]:
    """OpenAI's messages with content as text, arguments of calls as objects and thinking as `reasoning_content`.

    Raises BadRecord."""
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(turn: Any, at: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"{at} is {_kind(turn)}, not an object")
    if "role" not in turn and "from" in turn:
        return _sharegpt(turn, at)
    role = turn.get("role")
    role = SAME.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRecord(f"{at}.role is {json.dumps(role)}; use {one_of(ROLES)}")
    message: Message = {name: value for name, value in turn.items() if value is not None}
    message["role"] = role
    content, thinking = _content(turn.get("content"), f"{at}.content")
    for name in THINKING:
        value = message.pop(name, None)
        if value is not None and not isinstance(value, str):
            raise BadRecord(f"{at}.{name} is {_kind(value)}, not a text")
        thinking = thinking or value
    if thinking:
        message[THINKING[0]] = thinking
    calls = _calls(message, at)
    if calls:
        message["tool_calls"] = calls
    if calls and role != "assistant":
        raise BadRecord(f"{at} has tool_calls, but its role is {role}; only the assistant calls tools")
    if content is None and not calls and role != "assistant":
        raise BadRecord(f"{at}.content is missing")
    if content is not None or not calls:
        message["content"] = content or ""
    _put_weight(message, at)
    return message


def _sharegpt(turn: Mapping[str, Any], at: str) -> Message:
    role, value = SHAREGPT.get(turn["from"]) if isinstance(turn["from"], str) else None, turn.get("value")
    if role is None:
        raise BadRecord(f"{at}.from is {json.dumps(turn['from'])}; use {one_of(SHAREGPT)}")
    if not isinstance(value, str):
        raise BadRecord(f"{at}.value is {_kind(value)}, not a text")
    weight = {name: turn[name] for name in ("weight", "loss") if turn.get(name) is not None}
    if role != "call":
        return _message({"role": role, "content": value, **weight}, at)
    try:
        calls = read_json(value)
    except ValueError as error:
        raise BadRecord(f"{at}.value is a function call that is not JSON ({error})") from error
    calls = calls if isinstance(calls, list) else [calls]
    return _message({"role": "assistant", "tool_calls": calls, **weight}, at)


def _content(content: Any, at: str) -> tuple[str | None, str | None]:
    """Text and thinking of a message's content: a text, or parts that are texts and thinking."""
    if content is None or isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        raise BadRecord(f"{at} is {_kind(content)}, not a text or a list of parts")
    texts: list[str] = []
    thoughts: list[str] = []
    for place, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part if isinstance(part, str) else None
        if isinstance(part, Mapping):
            text = next((part[name] for name in (kind, "text", *THINKING) if isinstance(part.get(name), str)), None)
        if kind not in ("text", *THINKING) or text is None:
            raise BadRecord(
                f"{at}[{place}] is a part of type {json.dumps(kind)}; parts are texts and thinking: images and "
                "signals of chats are not trained on"
            )
        (texts if kind == "text" else thoughts).append(text)
    return "".join(texts), "\n".join(thoughts) or None


def _calls(message: Message, at: str) -> list[Any]:
    calls, old = message.pop("tool_calls", None) or [], message.pop("function_call", None)
    if not isinstance(calls, list):
        raise BadRecord(f"{at}.tool_calls is {_kind(calls)}, not a list")
    return [_call(call, f"{at}.tool_calls[{n}]") for n, call in enumerate([*calls, *([old] if old else [])])]


def _call(call: Any, at: str) -> Message:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRecord(f"{at} has no function with a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI's spelling; templates write the object themselves
        arguments = _json(arguments or "{}", f"{at}.function.arguments")
    if not isinstance(arguments, Mapping):
        raise BadRecord(f"{at}.function.arguments is {_kind(arguments)}, not an object")
    more = {name: value for name, value in call.items() if name in ("id", "type") and value is not None}
    return {"type": "function", **more, "function": {"name": function["name"], "arguments": arguments}}


def _put_weight(message: Message, at: str) -> None:
    """`weight` as OpenAI's fine-tuning files have it, 0 or 1; `loss` as InternLM's, true or false."""
    loss = message.pop("loss", None)
    if loss is not None and not isinstance(loss, bool):
        raise BadRecord(f"{at}.loss is {json.dumps(loss)}; use true or false")
    if loss is not None:
        message["weight"] = int(loss)
    if message.get("weight", 1) not in (0, 1):
        raise BadRecord(f"{at}.weight is {json.dumps(message['weight'])}; use 0 or 1")


def _json(value: Any, at: str) -> Any:
    """The value of a text of JSON; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        raise BadRecord(f"{at} is a text that is not JSON ({error})") from error


def _kind(value: Any) -> str:
    names = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
