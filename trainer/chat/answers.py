"""The answer of an assistant taken apart as it comes: thinking, text, and calls of tools.

The checkpoint's chat template shows the format in which it was trained to write them:

    <think>...</think>                                                                       thinking
    <tool_call>{"name": "f", "arguments": {...}}</tool_call>                                 Hermes, Qwen, Intern-S1-Pro
    <tool_call><function=f><parameter=x>1</parameter></function></tool_call>                 Qwen3-Coder
    <|action_start|><|plugin|>{"name": "f", "parameters": {...}}<|action_end|>               InternLM, Intern-S1

A call that cannot be read is left in the text as it is. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Properties = Mapping[str, Mapping[str, Any]]  # function -> argument -> its JSON schema


class Part(NamedTuple):
    """A piece of an answer. kind: `thinking` and `text` come in many pieces; a call comes whole, with its name and the
    JSON object of its arguments."""

    kind: Literal["thinking", "text", "call"]
    text: str
    name: str = ""


@dataclass(frozen=True)
class Calls:
    """The way calls are written: their marks, and a reader of what is between them, which returns name and arguments,
    or None for what is not a call."""

    open: str
    close: str
    read: Callable[[str, Properties], tuple[str, str] | None]
    is_json: bool = True


@dataclass(frozen=True)
class Format:
    """thinking: the marks around it. Either is None where the template does not show it."""

    thinking: tuple[str, str] | None
    calls: Calls | None

    @property
    def marks(self) -> str:
        """All marks, one after another."""
        return "".join([*(self.thinking or ()), *((self.calls.open, self.calls.close) if self.calls else ())])


def format_of(template: str) -> Format:
    """The format that a chat template shows."""
    thinking = ("<think>", "</think>") if "<think>" in template and "</think>" in template else None
    calls = None
    if "<tool_call>" in template and "<function=" in template:
        calls = Calls("<tool_call>", "</tool_call>", _read_tags, is_json=False)
    elif "<tool_call>" in template and "arguments" in template and "<arg_key>" not in template:
        calls = Calls("<tool_call>", "</tool_call>", _read_json)
    elif "<|action_start|>" in template and "<|plugin|>" in template:
        calls = Calls("<|action_start|><|plugin|>", "<|action_end|>", _read_json)
    return Format(thinking, calls)


class AnswerReader:
    """Takes an answer apart. Newlines that templates put around thinking and between calls belong to none of them.

    thinking: the prompt ended inside the mark of thinking. tools: OpenAI's, which may be called; without any, what
    looks like a call is text.
    """

    def __init__(self, format: Format, *, thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._format, self._calls = format, format.calls if tools else None
        self._properties = properties_of(tools)
        self._where: Literal["start", "thinking", "text", "call"] = "thinking" if thinking else "start"
        self._held = ""  # not known yet
        self._spaces = ""  # before what comes next, if it is text or thinking
        self._written = False  # something of the kind that is being read
        self._after_call = False

    def push(self, text: str) -> list[Part]:
        """The parts that are known by now."""
        self._held += text
        return [*self._read(end=False)]

    def finish(self) -> list[Part]:
        """The answer ends: what was held back. A call that was not closed is text."""
        parts = [*self._read(end=True)]
        if self._spaces and self._where != "thinking" and not self._after_call:
            parts.append(Part("text", self._spaces))
        self._spaces = ""
        return parts

    def _read(self, *, end: bool) -> Iterator[Part]:
        while self._held or (end and self._where == "call"):
            before = self._held, self._where
            yield from {
                "start": self._read_start, "thinking": self._read_thinking, "text": self._read_text,
                "call": self._read_call,
            }[self._where](end)  # fmt: skip
            if (self._held, self._where) == before:
                return

    def _read_start(self, end: bool) -> Iterator[Part]:
        """Before thinking or text, where only spaces have been."""
        mark = self._format.thinking[0] if self._format.thinking else ""
        rest = self._held.lstrip()
        if mark and rest.startswith(mark):
            self._held, self._where = rest[len(mark) :], "thinking"
        elif end or not mark or (rest and not mark.startswith(rest)):
            self._where = "text"
        yield from ()

    def _read_thinking(self, end: bool) -> Iterator[Part]:
        assert self._format.thinking is not None
        before, found = self._until(self._format.thinking[1], end)
        yield from self._say("thinking", before)
        if found:
            self._where, self._written, self._spaces = "text", False, ""

    def _read_text(self, end: bool) -> Iterator[Part]:
        if self._calls is None:
            before, self._held = self._held, ""
            yield from self._say("text", before)
            return
        before, found = self._until(self._calls.open, end)
        yield from self._say("text", before)
        if found:
            self._where = "call"

    def _read_call(self, end: bool) -> Iterator[Part]:
        """Behind the opening mark."""
        assert self._calls is not None
        calls, at = self._calls, self._held.find(self._calls.close)
        while at >= 0 and calls.is_json and _inside_text(self._held[:at]):
            at = self._held.find(calls.close, at + 1)
        if at < 0 and not end:
            return
        if at < 0:  # never closed, or a text in it was not
            at = self._held.find(calls.close)
        size = len(self._held) if at < 0 else at + len(calls.close)
        call = None if at < 0 else calls.read(self._held[:at], self._properties)
        written, self._held = calls.open + self._held[:size], self._held[size:]
        self._where = "text"
        if call is None:
            yield from self._say("text", written)
            return
        self._spaces, self._written, self._after_call = "", False, True
        yield Part("call", call[1], call[0])

    def _until(self, mark: str, end: bool) -> tuple[str, bool]:
        """The text before a mark, as far as it is known, and if the mark was found. Both leave `_held`."""
        at = self._held.find(mark)
        if at >= 0:
            before, self._held = self._held[:at], self._held[at + len(mark) :]
            return before, True
        keep = 0 if end else next((n for n in range(len(mark) - 1, 0, -1) if self._held.endswith(mark[:n])), 0)
        before, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return before, False

    def _say(self, kind: Literal["thinking", "text"], text: str) -> Iterator[Part]:
        """Without the newlines at its start, and with the spaces at its end only once more follows."""
        text = self._spaces + text
        if not self._written and (kind == "thinking" or self._format.thinking or self._after_call):
            text = text.lstrip("\n")
        kept = text.rstrip()
        self._spaces = text[len(kept) :]
        if kept:
            self._written, self._after_call = True, False
            yield Part(kind, kept)


def read_answer(
    text: str, format: Format, *, thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[str, str, list[Part]]:
    """Thinking, text and calls of a whole answer."""
    reader = AnswerReader(format, thinking=thinking, tools=tools)
    parts = [*reader.push(text), *reader.finish()]
    thought, said = ("".join(part.text for part in parts if part.kind == kind) for kind in ("thinking", "text"))
    return thought, said, [part for part in parts if part.kind == "call"]


def properties_of(tools: Sequence[Mapping[str, Any]]) -> Properties:
    """The schemas of the arguments of OpenAI's tools, as far as they are as they should be."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        if isinstance(properties, Mapping) and isinstance(function.get("name"), str):
            found[function["name"]] = {name: one for name, one in properties.items() if isinstance(one, Mapping)}
    return found


def _inside_text(json_text: str) -> bool:
    """Return True if JSON ends inside a text."""
    return len(re.sub(r"\\.", "", json_text, flags=re.DOTALL).split('"')) % 2 == 0


_DECODER = json.JSONDecoder(parse_constant=lambda constant: _refuse(constant))
_SPACE = re.compile(r"\s*")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _read_json(body: str, properties: Properties) -> tuple[str, str] | None:
    """{"name": ..., "arguments": {...}}: the arguments stay as they were written, 1.50 and all."""
    try:
        spans = _members(body)
        name = json.loads(spans["name"])
        written = spans["arguments"] if "arguments" in spans else spans["parameters"]
        arguments = _DECODER.decode(written)
        if isinstance(arguments, str):  # a text of JSON
            written, arguments = arguments, _DECODER.decode(arguments)
    except (ValueError, KeyError, RecursionError):
        return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return name, written


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object as they are written. Raises ValueError."""
    found: dict[str, str] = {}
    at = _after(text, 0, "{")
    while True:
        key, end = _DECODER.raw_decode(text, at)
        if not isinstance(key, str) or key in found:
            raise ValueError("a key is not a text, or is there twice")
        at = _after(text, end, ":")
        _, end = _DECODER.raw_decode(text, at)
        found[key] = text[at:end]
        at = _space(text, end)
        if text[at : at + 1] != ",":
            break
        at = _space(text, at + 1)
    if _after(text, at, "}") != len(text):
        raise ValueError("more follows the object")
    return found


def _after(text: str, at: int, mark: str) -> int:
    """The place behind a mark and the spaces around it."""
    at = _space(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"{mark} is missing")
    return _space(text, at + len(mark))


def _space(text: str, at: int) -> int:
    matched = _SPACE.match(text, at)
    return matched.end() if matched else at


_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*)</function>\s*", re.DOTALL)
_ARGUMENT = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)


def _read_tags(body: str, properties: Properties) -> tuple[str, str] | None:
    """<function=f><parameter=x>...</parameter></function>: the tool's schema says what is a number and what a text."""
    function = _FUNCTION.fullmatch(body)
    if function is None:
        return None
    name, rest = function.groups()
    schemas, arguments, at = properties.get(name, {}), dict[str, str](), 0
    while (argument := _ARGUMENT.match(rest, at)) is not None:
        key, value = argument.groups()
        if key in arguments:
            return None
        arguments[key] = _typed(value.removeprefix("\n").removesuffix("\n"), schemas.get(key, {}))
        at = argument.end()
    if rest[at:].strip():
        return None
    return name, "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {of}" for key, of in arguments.items()) + "}"


_KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,), "number": (int, float), "boolean": (bool,), "object": (dict,), "array": (list,),
    "null": (type(None),),
}  # fmt: skip


def _typed(text: str, schema: Mapping[str, Any]) -> str:
    """The JSON of an argument: of a text, unless its schema asks for something else and it is that."""
    kinds = schema.get("type", "string")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    written = text.lower() if text.lower() in ("true", "false", "null") else text
    try:
        value = _DECODER.decode(written)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    fits = any(type(value) in _KINDS.get(kind, ()) for kind in kinds if isinstance(kind, str))
    return written.strip() if fits else json.dumps(text, ensure_ascii=False)
