"""The model that is served: its name, limits and tokenizer, and requests to its engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launch.serving.conversation import Conversation
from launch.serving.http.bodies import Sampled
from launch.serving.http.errors import ApiError, refused
from launch.serving.http.media import NOWHERE, Sources
from launch.serving.http.worker import Worker
from parallel.errors import UserError
from trainer.data.shards.tokenizer import Tokenizer
from trainer.engine.load import Source
from trainer.engine.media import Medium
from trainer.engine.request import Request, check
from trainer.engine.text import Decode


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request. seconds: that an answer may take."""

    body: int = 16 * 2**20
    seconds: float = 600.0


@dataclass(frozen=True)
class Served:
    """name: that requests give as `model`. version: of the weights and the tokenizer, None where it is not known.
    context: the most tokens of prompt and answer."""

    name: str
    source: Source
    worker: Worker
    conversation: Conversation | None = None  # None: there is no chat template
    limits: Limits = Limits()
    media: Sources = NOWHERE
    version: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer:
        assert self.source.tokenizer is not None  # `octavo serve` refuses a source without one
        return self.source.tokenizer

    @property
    def decode(self) -> Decode:
        """Text of token ids, as answers have it."""
        return self.tokenizer.decode if self.conversation is None else self.conversation.decode

    @property
    def context(self) -> int:
        return self.worker.engine.context

    def require(self, model: str | None) -> None:
        """Raises ApiError for the name of another model."""
        if model not in (None, self.name):
            text = f"there is no model {model!r} here; use {self.name!r}"
            raise ApiError(404, text, param="model", code="model_not_found")

    def ids_of(self, prompt: str | Sequence[int]) -> list[int]:
        """Raises ApiError for a text that cannot be a prompt."""
        try:
            return self.source.prompt(prompt) if isinstance(prompt, str) else [*prompt]
        except UserError as error:
            raise refused(error) from None

    def request(
        self,
        prompt: Sequence[int],
        body: Sampled,
        *,
        max_tokens: int,
        number: int = 0,
        score_prompt: bool = False,
        alternatives: int = 0,
        ends: frozenset[int] = frozenset(),
        media: Sequence[Medium] = (),
        names: Mapping[str, str] | None = None,
    ) -> Request:
        """One request to the engine. number: of the answer among those to this prompt. ends: tokens that end an
        answer, beside those of the checkpoint. names: of the fields in `body`, where they differ from the engine's.
        Raises ApiError for one that the engine cannot serve."""
        stop_ids = frozenset() if body.ignore_eos else self.source.stop_ids | ends
        made = Request(
            prompt,
            max_tokens,
            body.sampling(number),
            stop_ids | frozenset(body.stop_token_ids or ()),
            tuple(body.stop or ()),
            score_prompt,
            alternatives,
            media,
        )
        kinds = {name: kind.token for name, kind in self.source.rules.kinds.items()} if media else {}
        engine = self.worker.engine
        try:
            check(
                made, vocab_size=engine.model.cfg.vocab_size, context=self.context, cache_tokens=self.context,
                has_text=True, placeholders=kinds,
            )  # fmt: skip
        except UserError as error:
            raise refused(error, dict(names or {})) from None
        return made
