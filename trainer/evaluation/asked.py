"""Questions to a model, its answers, and the settings under which it is asked. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from trainer.evaluation.suite import Message

MEDIA = ("image_url", "time_series_url")


@dataclass(frozen=True)
class Settings:
    """The way answers are drawn. max_tokens: of an answer, with its thinking. temperature 0: the most likely token.
    top_k 0: all tokens. thinking: `enable_thinking` of the chat template. seed: of the first answer to an item; further
    ones have the next."""

    name: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    thinking: bool
    seed: int = 0


# Section 5 of the report of Intern-S1-Pro, arXiv 2603.25040: with thinking, and greedy without.
SETTINGS = {
    "thinking": Settings("thinking", 65_536, 0.8, 0.95, 50, thinking=True),
    "non_thinking": Settings("non_thinking", 32_768, 0.0, 1.0, 0, thinking=False),
}


@dataclass(frozen=True)
class Question:
    """One answer that is wanted. key: of the ledger."""

    key: str
    messages: Sequence[Message]
    settings: Settings


@dataclass(frozen=True)
class Answer:
    """text: without the thinking part, which is `thinking`. finish: "length" where max_tokens or the context ended it.
    tokens: of the answer with its thinking; None where a server does not count them."""

    text: str
    thinking: str
    finish: Literal["stop", "length"]
    prompt_tokens: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Failure:
    """A question without an answer, and why. final: the model has none to give, as the prompt exceeds its context."""

    reason: str
    final: bool = False


class Model(Protocol):
    """A model that answers questions: the embedded engine or a server.

    identity: JSON that changes with the weights, or with the address and name. name: for people. context: the most
    tokens of prompt and answer; None where it is not known.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> int | None: ...

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer questions side by side, in any order; a few are taken from `questions` ahead of the answers."""


def key_of(
    suite: str, item: str, messages: Sequence[Message], settings: Settings, identity: Mapping[str, Any], kind: str = ""
) -> str:
    """The key of an answer: suite and item for people to read, and a hash of everything that it depends on. Files of
    media count by their content. kind: distinguishes what is not an answer, such as a judge's verdict."""
    facts = {
        "messages": [_with_content(message) for message in messages],
        "settings": {name: value for name, value in asdict(settings).items() if name != "name"},
        "model": identity,
        "kind": kind,
    }
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return f"{suite}/{item}/{hashlib.sha256(text.encode()).hexdigest()}"


def with_seed(settings: Settings, repeat: int) -> Settings:
    """The settings of an item's answer number `repeat`, from 0."""
    return replace(settings, seed=settings.seed + repeat)


def media_of(message: Message) -> list[tuple[str, dict[str, Any]]]:
    """(kind, what it names) of the media of a message, in order."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return [(part["type"], part[part["type"]]) for part in parts if part.get("type") in MEDIA]


def _with_content(message: Message) -> Any:
    if not media_of(message):
        return message
    parts = [dict(part) for part in message["content"]]
    for part in parts:
        if part["type"] in MEDIA:
            named = dict(part[part["type"]])
            with open(named.pop("url"), "rb") as file:
                part[part["type"]] = {**named, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return {**message, "content": parts}


def text_of(message: Message) -> str:
    """The text of a message, its parts one after another. Media are left out."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def existing_media(messages: Sequence[Message]) -> list[Path]:
    """Files of media that messages name and that are missing."""
    named = [Path(what["url"]) for message in messages for _, what in media_of(message)]
    return [path for path in named if not path.is_file()]
