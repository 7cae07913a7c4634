"""Questions as tokens: prompts and answers as texts, or by a checkpoint's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainer.chat.errors import ChatError
from trainer.data.chats.tokens import ChatTokenizer
from trainer.data.errors import DataError
from trainer.data.questions.asked import Asked
from trainer.data.questions.records import QuestionRecord
from trainer.data.shards.losses import Losses
from trainer.data.shards.tokenizer import Tokenizer

VALUES, TOOLS = "chat_template_kwargs", "tools"  # of a record: what its template reads
KNOWN = "a tokenizer that knows them as data.tokenizer, or other characters"


@dataclass(frozen=True)
class Preparer:
    """Makes questions of records. conversation: None where no record has messages. seq_len: the most tokens of a prompt
    and its answer. All methods raise DataError, which names file and line."""

    tokenizer: Tokenizer
    conversation: ChatTokenizer | None
    seq_len: int

    def prepare(self, number: int, source: str, record: QuestionRecord) -> Asked:
        if isinstance(record.prompt, str):
            prompt = (*self.tokenizer.before, *self._ids(record, "prompt", record.prompt))
            answer = (*self._ids(record, "answer", record.label), self.tokenizer.eos_id)
            asked = Asked(number, source, record, prompt, answer)
        else:
            assert self.conversation is not None
            asked = self._rendered(number, source, record, self.conversation)
        if (length := len(asked.prompt) + len(asked.answer)) > self.seq_len:
            allowed = "a larger data.seq_len"
            text = f"question and answer have {length} tokens, and data.seq_len={self.seq_len}; use {allowed}"
            raise DataError(f"{record.where}: {text}", where=record.where, value=length, allowed=allowed)
        return asked

    def _rendered(self, number: int, source: str, record: QuestionRecord, conversation: ChatTokenizer) -> Asked:
        """The prompt ends with what opens the assistant's turn; the answer is what the template writes behind it."""
        assert not isinstance(record.prompt, str)
        values = {**conversation.values, **_mapping(record, VALUES)}
        tools = _schemas(record)
        said = {"role": "assistant", "content": record.label}
        try:
            prompt = conversation.template.render(record.prompt, tools, **{**values, "add_generation_prompt": True})
            whole = conversation.template.render([*record.prompt, said], tools, **values)
        except ChatError as error:
            raise DataError(f"{record.where}: {error}", where=record.where, value=error.value,
                            allowed=error.allowed) from error  # fmt: skip
        if not conversation.ends:
            allowed = "a template that writes a control token behind an answer"
            text = f"{record.where}: {conversation.template.where} has no token that ends a turn; use {allowed}"
            raise DataError(text, where=record.where, value=conversation.template.where, allowed=allowed)
        marks = conversation.format.thinking
        opens = marks[0] if marks and prompt.rstrip().endswith(marks[0]) else ""
        label = f"{marks[1]}\n\n{record.label}" if marks and opens else record.label
        written = whole[len(prompt) :] if whole.startswith(prompt) else label
        _check_written(record, written, conversation)
        answer = self._ids(record, "answer", written)
        end = next((place for place, token in enumerate(answer) if token in conversation.ends), len(answer))
        ids = (*answer[:end], min(conversation.ends))
        return Asked(number, source, record, tuple(self._ids(record, "prompt", prompt)), ids, opens)

    def _ids(self, record: QuestionRecord, part: str, text: str) -> list[int]:
        """The ids of a part of a question. Refuses characters that the tokenizer does not know."""
        tokenizer, losses = self._for_text if isinstance(record.prompt, str) else self._for_templates
        try:
            (ids,) = tokenizer.encode_all([text])
            lost = losses.characters(text, ids)
        except DataError as error:
            lost = str(error.value)
        if lost:
            fault = f"{record.where}: the {part} has characters that the tokenizer does not know: {lost}; use {KNOWN}"
            raise DataError(fault, where=record.where, value=lost, allowed=KNOWN)
        return ids

    @cached_property
    def _for_text(self) -> tuple[Tokenizer, Losses]:
        return self.tokenizer, Losses(self.tokenizer)

    @cached_property
    def _for_templates(self) -> tuple[Tokenizer, Losses]:
        """Special tokens that a template writes become tokens."""
        assert self.conversation is not None
        found = Tokenizer.load(self.conversation.path, self.tokenizer.end_of_document, special_text="encode")
        return found, Losses(found)


def _check_written(record: QuestionRecord, written: str, conversation: ChatTokenizer) -> None:
    """Refuse an answer that rewards would read as another text: a template that writes marks of its own in front of it,
    as Harmony's channels are, or an end of a turn inside it."""
    close = conversation.format.thinking[1] if conversation.format.thinking else ""
    shown, label = (text.rpartition(close)[2].strip() if close else text.strip() for text in (written, record.label))
    if not shown.startswith(label):
        allowed = "a template that writes the answer alone, or its thinking in front"
        text = f"{record.where}: {conversation.template.where} writes {shown[:80]!r} for the answer; use {allowed}"
        raise DataError(text, where=record.where, value=shown[:80], allowed=allowed)
    if ends := [token for token in map(conversation.token, sorted(conversation.ends)) if token and token in label]:
        allowed = "an answer without it"
        text = f"{record.where}: {ends[0]} ends a turn and is in the answer; use {allowed}"
        raise DataError(text, where=record.where, value=ends[0], allowed=allowed)


def _mapping(record: QuestionRecord, key: str) -> Mapping[str, Any]:
    found = record.data.get(key, {})
    if not isinstance(found, Mapping):
        _refuse(record, key, found, "an object")
    return dict(found)


def _schemas(record: QuestionRecord) -> list[Any] | None:
    found = record.data.get(TOOLS) or None
    if found is not None and not (isinstance(found, list) and all(isinstance(tool, Mapping) for tool in found)):
        _refuse(record, TOOLS, found, "a list of JSON schemas of functions")
    return found


def _refuse(record: QuestionRecord, key: str, value: Any, allowed: str) -> None:
    raise DataError(f"{record.where}: {key} is not {allowed}", where=record.where, value=value, allowed=allowed)
