"""The characters of a chat that are trained, and the tokens that they are.

Trained is what the assistant writes, as the template renders it: thinking, text, calls, and the token that ends its
turn. A template with `{% generation %}` blocks says so. Of any other it is found by rendering and checked: the
conversation before a turn, with the generation prompt, must be the start of the conversation with the turn, and the
turn is what follows. A template that writes earlier turns in another way than the last one (without their thinking,
say) gives several examples of one chat, so that every turn is trained on in the context in which it was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.chat.errors import ChatError
from trainer.chat.records import Chat, is_trained
from trainer.chat.template import THINKING, ChatTemplate, Span

SHOWN = 40  # characters of a text in an error
# A character that is never text, put behind what others than the assistant say, to see where a template writes it.
FOREIGN = "\ufdd2"


@dataclass(frozen=True)
class Example:
    """A text to train on. spans: the characters of it that are trained, in order, apart from each other. silent: turns
    whose thinking the template leaves out."""

    text: str
    spans: tuple[Span, ...]
    silent: int = 0


class _Turn(NamedTuple):
    """place: of its message. text: the conversation up to the end of the turn. first: where the turn starts in it.
    silent: its thinking is not there."""

    place: int
    text: str
    first: int
    silent: bool


def examples(
    template: ChatTemplate, chat: Chat, control: Iterable[str], values: Mapping[str, Any] | None = None
) -> list[Example]:
    """The trained parts of a chat, every turn of the assistant once; [] where the template leaves nothing of its turns.

    control: the special tokens of the tokenizer; one of them ends a turn. values: names that the template reads; those
    of the chat go first. Raises ChatError for a chat that the template refuses, and for a template that does not write
    a turn behind its own generation prompt.
    """
    values = {**(values or {}), **chat.values}
    if template.marks(chat.tools):
        return _marked(template, chat, values)
    pattern = re.compile(
        "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True) if token) or "$^"
    )
    turns = [
        _turn(template, chat, place, pattern, values)
        for place, message in enumerate(chat.messages)
        if is_trained(message)
    ]
    found: list[Example] = []
    while turns:
        place, text = turns[-1].place, turns[-1].text
        inside = [turn for turn in turns if text.startswith(turn.text)]
        turns = [turn for turn in turns if not text.startswith(turn.text)]
        spans = tuple((turn.first, len(turn.text)) for turn in inside if len(turn.text) > turn.first)
        if spans:
            _refuse_foreign(template, chat, chat.messages[: place + 1], values, text, spans)
            found.append(Example(text, spans, sum(turn.silent for turn in inside)))
    return found[::-1]


def _turn(template: ChatTemplate, chat: Chat, place: int, control: re.Pattern[str], values: Mapping[str, Any]) -> _Turn:
    before, messages = chat.messages[:place], chat.messages[: place + 1]
    prompt = template.render(before, chat.tools, **{**values, "add_generation_prompt": True})
    text = template.render(messages, chat.tools, **values)
    if not text.startswith(prompt):
        _refuse(template, chat, place, prompt, text)
    closed = template.render(before, chat.tools, **values)
    # What ends every conversation, such as Phi-3's <|endoftext|>, takes the place of a prompt and is not in the turn,
    # unless nothing else ends it.
    closing = closed[_common(closed, prompt, control) :]
    if closing and text.endswith(closing) and _ends(text[: len(text) - len(closing)], len(prompt), control):
        text = text[: len(text) - len(closing)]
    for call in chat.messages[place].get("tool_calls", ()):
        if (name := call["function"]["name"]) not in text[len(prompt) :]:
            remedy = "a chat template that writes calls of tools"
            text = f"{chat.where}: {template.where} leaves out a call of {name} in messages[{place}]; use {remedy}"
            raise ChatError(text, where=chat.where, value=name, allowed=remedy)
    if end := _ends(text, len(prompt), control):
        text = text[:end]
    thought = chat.messages[place].get(THINKING[0], "").strip()
    return _Turn(place, text, len(prompt), thought not in text[len(prompt) :])


def _ends(text: str, first: int, control: re.Pattern[str]) -> int | None:
    """The end of the last control token from `first` on, None where more than white space is behind it."""
    ends = [match.end() for match in control.finditer(text, first)]
    return ends[-1] if ends and not text[ends[-1] :].strip() else None


def _common(one: str, other: str, control: re.Pattern[str]) -> int:
    """Characters of the longest common start; a control token is in it as a whole or not at all."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    for match in control.finditer(one):
        if match.start() < length < match.end():
            return match.start()
    return length


def _refuse(template: ChatTemplate, chat: Chat, place: int, prompt: str, text: str) -> None:
    at = next((n for n, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text)))
    has, instead = prompt[at : at + SHOWN], text[at : at + SHOWN]
    remedy = (
        "a chat template that writes a finished turn behind its generation prompt, or one with {% generation %} "
        "around what the assistant writes"
    )
    raise ChatError(
        f"{chat.where}: {template.where} asks for messages[{place}] with a prompt that ends in {has!r}, but writes "
        f"{instead!r} in its place once the turn is there; what the assistant writes cannot be found: use {remedy}",
        where=chat.where, value=has, allowed=remedy,
    )  # fmt: skip


def _marked(template: ChatTemplate, chat: Chat, values: Mapping[str, Any]) -> list[Example]:
    text, spans = template.render_marked(chat.messages, chat.tools, **values)
    turns = [message for message in chat.messages if message["role"] == "assistant"]
    left_out = [is_trained(message) for message in turns]
    if not all(left_out):
        if len(spans) != len(turns):
            allowed = "a template with one block for each turn, or no weight of 0"
            raise ChatError(
                f"{chat.where}: {template.where} has {len(spans)} generation blocks for {len(turns)} turns of the "
                f"assistant, so those that are not trained cannot be found; use {allowed}",
                where=chat.where, value=len(spans), allowed=allowed,
            )  # fmt: skip
        spans = [span for span, trained in zip(spans, left_out, strict=True) if trained]
    silent = sum(str(message.get(THINKING[0], "")).strip() not in text for message in turns)
    if not spans:
        return []
    text = text[: spans[-1][1]]
    _refuse_foreign(template, chat, chat.messages, values, text, spans)
    return [Example(text, tuple(spans), silent)]


def _refuse_foreign(
    template: ChatTemplate,
    chat: Chat,
    messages: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    text: str,
    spans: Sequence[Span],
) -> None:
    """Raise ChatError where a span has what the user, a tool or the system said: a template's generation blocks may
    enclose it, and a template may write a question only once its answer is there."""
    marked = template.render([_with_mark(message) for message in messages], chat.tools, **values)
    parts = marked.split(FOREIGN)
    if not "".join(parts).startswith(text):  # the template writes other text because of the marks
        return
    end = 0
    for part in parts[:-1]:
        end += len(part)
        if any(first < end <= last for first, last in spans):
            said, allowed = text[max(0, end - SHOWN) : end], "a template that has what the assistant writes apart"
            raise ChatError(
                f"{chat.where}: {template.where} writes {said!r} where the assistant writes, and it would be trained "
                f"on; use {allowed}",
                where=chat.where, value=said, allowed=allowed,
            )  # fmt: skip


def _with_mark(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if message["role"] == "assistant" or not isinstance(content, str) or not content.strip():
        return message
    end = len(content.rstrip())
    return {**message, "content": content[:end] + FOREIGN + content[end:]}


def trained_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> tuple[list[bool], int]:
    """Return a mask of the tokens that are trained, and how many straddle the edge of a span, which are not.

    A token is trained if all its characters are inside one span: a token that has a character of the prompt, too, is
    never generated as such. One without characters is trained inside a span and not at its edges. offsets: characters
    of each token, in order.
    """
    mask, straddling, at = [], 0, 0
    for first, end in offsets:
        while at < len(spans) and spans[at][1] <= first:
            at += 1
        start, stop = spans[at] if at < len(spans) else (end, end)
        inside = start < first < stop if first == end else start <= first and end <= stop
        inside = inside and at < len(spans)
        mask.append(inside)
        straddling += not inside and at < len(spans) and first < end and start < end and first < stop
    return mask, straddling
