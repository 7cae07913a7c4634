"""Chats as tokens: the tokenizer and the template of a run, and the ids of an example with its mask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from trainer.chat.answers import Format, format_of
from trainer.chat.errors import ChatError
from trainer.chat.masks import Example, trained_tokens
from trainer.chat.template import DEFAULT, REMEDY, WITH_TOOLS, ChatTemplate, find_template, read_special_tokens
from trainer.data.errors import DataError
from trainer.data.shards.tokenizer import read_tokenizer, tokenizer_file, visible_text

if TYPE_CHECKING:
    import tokenizers

    from trainer.config.keys import DataConfig

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """ids: of one example. trained: True for those that are labels. straddling: those on the edge of a trained span."""

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    straddling: int


@dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer.json and the chat template that goes with it.

    values: what the template reads beside the messages.
    """

    path: Path
    template: ChatTemplate
    values: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        found = read_tokenizer(self.path)
        # The template writes the special tokens. Without this, ByteLevel trims the offsets of spaces away.
        found.post_processor = None
        found.encode_special_tokens = False  # text that spells a special token becomes the token
        return found

    @cached_property
    def control(self) -> frozenset[str]:
        """The special tokens: one of them ends a turn."""
        return frozenset(token.content for token in self._library.get_added_tokens_decoder().values() if token.special)

    @property
    def vocab_size(self) -> int:
        """Rows of a table that every id indexes."""
        return 1 + max(self._library.get_vocab(with_added_tokens=True).values())

    @property
    def key(self) -> str:
        """A hash of everything that makes text of messages and tokens of text, the date left out."""
        parts = {
            "tokenizer": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "templates": dict(self.template.texts),
            "special_tokens": dict(self.template.special_tokens),
            "values": dict(self.values),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, examples: Sequence[Example]) -> list[Tokens]:
        """Raises DataError for text that the tokenizer cannot encode."""
        try:
            encodings = self._library.encode_batch([one.text for one in examples], add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            remedy = "use one with a token for unknown text"
            text = f"{self.path} cannot encode the chats: {error}; {remedy}"
            raise DataError(text, where=str(self.path), value=str(error), allowed=remedy) from error
        found = []
        for example, encoding in zip(examples, encodings, strict=True):
            mask, straddling = trained_tokens(encoding.offsets, example.spans)
            found.append(Tokens(np.array(encoding.ids, np.int32), np.array(mask, np.bool_), straddling))
        return found

    def ids_of(self, text: str) -> list[int]:
        """The ids of a text that a template wrote. Raises DataError for text that the tokenizer cannot encode."""
        return self.encode([Example(text, ())])[0].ids.tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included, and U+FFFD for an id without a token."""
        return visible_text(self._library, ids)

    @cached_property
    def format(self) -> Format:
        """The way in which the template writes thinking and calls."""
        return format_of(self.template.texts.get(WITH_TOOLS) or self.template.texts.get(DEFAULT, ""))

    @cached_property
    def ends(self) -> frozenset[int]:
        """The token that the template writes behind an answer; none where it writes text there."""
        behind = self.ids_of(self.template.behind_answer(**self.values))
        return frozenset(token for token in behind[:1] if token in self._library.get_added_tokens_decoder())

    def token(self, number: int) -> str | None:
        found: str | None = self._library.id_to_token(number)
        return found

    def id_of(self, token: str) -> int | None:
        found: int | None = self._library.token_to_id(token)
        return found


def open_tokenizer(data: DataConfig, weights: Path | None = None, kept: Path | None = None) -> ChatTokenizer:
    """The tokenizer and template of `data`. kept: where the run keeps its own; weights: that it starts from.

    Raises DataError and ChatError.
    """
    if data.tokenizer is not None:
        given, key = Path(data.tokenizer), "data.tokenizer"
    elif kept is not None and tokenizer_file(kept).is_file():
        given, key = kept, str(kept)
    elif weights is not None:
        given, key = weights, "checkpoint.init_from"
    else:
        allowed = "a tokenizer.json, or a directory with one"
        text = f"data.tokenizer is missing, and checkpoint.init_from, which has one, too; use {allowed}"
        raise DataError(text, where="data.tokenizer", allowed=allowed)
    path = tokenizer_file(given)
    read_tokenizer(path)  # what is wrong with it is named before the template's faults
    found = find_template(Path(data.chat_template) if data.chat_template is not None else path.parent)
    if found is None:
        where = "data.chat_template" if data.chat_template is not None else key
        text = f"{where}={data.chat_template or given} has no chat template; set data.chat_template to {REMEDY}"
        raise ChatError(text, where="data.chat_template", value=data.chat_template, allowed=REMEDY)
    found.check()
    special = {**read_special_tokens(path.parent), **found.special_tokens}
    template = replace(found, special_tokens=special, now=_now(data.chat_date, found.where))
    return ChatTokenizer(path, template, dict(data.chat_values))


class _now:
    """The date that templates print: a run is a function of its configuration, not of the day it starts on."""

    def __init__(self, date: str | None, where: str) -> None:
        self.date, self.where = date, where

    def __call__(self) -> datetime:
        if self.date is None:
            self._refuse()
        return datetime.fromisoformat(self.date)

    def _refuse(self) -> NoReturn:
        allowed = "a day, such as 2026-12-01"
        text = f"{self.where} prints the date; set data.chat_date to {allowed}"
        raise ChatError(text, where="data.chat_date", allowed=allowed)
