"""Conversations with a checkpoint in the format of its own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from trainer.chat.answers import Format, format_of
from trainer.chat.template import DEFAULT, WITH_TOOLS, ChatTemplate, Message, find_template
from trainer.config.errors import CommandError
from trainer.data.shards.tokenizer import Tokenizer
from trainer.engine.load import Source


class Opened(NamedTuple):
    """text: a conversation, up to where the assistant writes. thinking: that is inside the mark of thinking."""

    text: str
    thinking: bool


@dataclass(frozen=True)
class Conversation:
    """The template of a checkpoint with its tokenizer."""

    template: ChatTemplate
    tokenizer: Tokenizer

    @cached_property
    def format(self) -> Format:
        return format_of(self.template.texts.get(WITH_TOOLS) or self.template.texts.get(DEFAULT, ""))

    @cached_property
    def ends(self) -> frozenset[int]:
        """The token that the template writes behind an answer, where it is one that text cannot spell in another way:
        the model was trained to end its turn with it."""
        added = self.tokenizer.added
        behind = self.tokenizer.encode(self.template.behind_answer())[len(self.tokenizer.before) :]
        return frozenset(token for token in behind[:1] if self.tokenizer.token(token) in added)

    def open(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), **values: Any) -> Opened:
        """values: further names that the template reads, such as enable_thinking. Raises ChatError."""
        text = self.template.render(messages, [*tools] or None, add_generation_prompt=True, **values)
        thinking = self.format.thinking
        return Opened(text, thinking is not None and text.rstrip().endswith(thinking[0]))

    def ids_of(self, text: str) -> list[int]:
        """Without what the tokenizer puts before a document: the template wrote that."""
        return self.tokenizer.encode(text)[len(self.tokenizer.before) :]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, with the marks of thinking and calls also where they are special tokens."""
        parts, at = [], 0
        for place, token in enumerate(ids):
            if token in self._marks:
                parts += [self.tokenizer.decode(ids[at:place]), self._marks[token]]
                at = place + 1
        return "".join([*parts, self.tokenizer.decode(ids[at:])]) if parts else self.tokenizer.decode(ids)

    @cached_property
    def _marks(self) -> dict[int, str]:
        added, marks = self.tokenizer.added, self.format.marks
        found = {self.tokenizer.id_of(name): name for name, special in added.items() if special and name in marks}
        return {token: name for token, name in found.items() if token is not None}


def find_conversation(source: Source, directory: str, file: str | None) -> Conversation | None:
    """With the template in `file`, or the checkpoint's own; None where it has none. Raises ChatError, also for
    one that cannot be compiled."""
    if file is not None and not Path(file).is_file():
        remedy = "a file with a template in Jinja"
        text = f"--chat-template={file} is not a file; give {remedy}"
        raise CommandError(text, where="--chat-template", value=file, allowed=remedy)
    template = find_template(Path(file or directory))
    return None if template is None else Conversation(template.check(), source.require_tokenizer())
