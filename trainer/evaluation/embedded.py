"""Answers from the embedded engine: a model of a run or of a Hugging Face directory, in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from parallel.errors import UserError
from trainer.chat.answers import AnswerReader, Format, Part
from trainer.chat.template import ChatTemplate
from trainer.config.errors import print_warning
from trainer.data.media.readers.read import read_recording
from trainer.engine.load import Source
from trainer.engine.media import Medium
from trainer.engine.request import Completion, Request, Sampling
from trainer.evaluation.asked import Answer, Failure, Question, media_of, text_of
from trainer.evaluation.perplexity import Passage, PassageScore, is_log_prob, score_of
from trainer.evaluation.suite import Message, SuiteError
from trainer.weights.opened import OpenedCheckpoint

if TYPE_CHECKING:
    import torch

    from trainer.engine.engine import Engine

T = TypeVar("T")
KEYS = 64  # tokens of a page of the cache
CACHE_TOKENS = 32_768  # of all answers together, where nothing else is asked for


class Piece(NamedTuple):
    """The part of a passage that is scored at once. counted: of the ids behind the first; None: all. of: pieces of the
    passage."""

    passage: Passage
    ids: Sequence[int]
    counted: Sequence[bool] | None
    of: int


class ContextError(SuiteError):
    """A prompt that leaves no room for an answer."""


class Opened(Protocol):
    """text: a conversation, up to where the assistant writes. thinking: that is inside the mark of thinking."""

    @property
    def text(self) -> str: ...
    @property
    def thinking(self) -> bool: ...


class Conversation(Protocol):
    """Conversations in a checkpoint's own format. ends: tokens that end an answer, beside those of the checkpoint."""

    @property
    def template(self) -> ChatTemplate: ...
    @property
    def format(self) -> Format: ...
    @property
    def ends(self) -> frozenset[int]: ...

    def open(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), **values: Any) -> Opened: ...
    def decode(self, ids: list[int]) -> str: ...


class EmbeddedModel:
    """A model of this machine.

    source: a run, a step-N directory or a Hugging Face directory. conversation: None: the prompt is the texts of the
    messages, with an empty line between two. device: called before weights are read. towers: questions may have images
    or signals. batch: answers side by side. cache_tokens: of the engine; None: what `batch` questions
    need, but at most 32,768 or what one needs.
    Raises DataError without a tokenizer.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        conversation: Conversation | None,
        device: Callable[[], torch.device],
        *,
        towers: bool = False,
        batch: int = 16,
        cache_tokens: int | None = None,
    ) -> None:
        self.source, self.name, self.context = source, name, source.model.max_position
        self.tokenizer, self.conversation = source.require_tokenizer(), conversation
        self._device, self._towers, self._batch, self._cache_tokens = device, towers, batch, cache_tokens
        texts = None if conversation is None else dict(conversation.template.texts)
        rules = source.rules.to_json() if source.placeholders else None
        self.identity = {
            "weights": _version(source),
            "prompt": _digest([self.tokenizer.state, texts, rules]),
            "precision": [source.linears, source.experts],
        }
        self._engine: Engine | None = None

    def prompt(self, question: Question) -> tuple[list[int], list[Medium]]:
        """Token ids and media.

        Raises UserError for messages that the template or the tokenizer refuses, and for media that cannot be read."""
        media = [self._medium(kind, what) for message in question.messages for kind, what in media_of(message)]
        if self.conversation is None:
            text = "\n\n".join(text_of(message) for message in question.messages)
            return self.source.prompt(text, media), media
        opened = self.conversation.open(question.messages, enable_thinking=question.settings.thinking)
        return self.source.prompt(opened.text, media, opening=False), media

    def _medium(self, kind: str, what: Mapping[str, Any]) -> Medium:
        path = Path(what["url"])
        if kind == "image_url":
            return self.source.medium("image", path)
        rate = what.get("sampling_rate")
        return self.source.medium("signal", read_recording(path, where=str(path), rate=rate))

    def _request(self, question: Question) -> Request:
        (prompt, media), s = self.prompt(question), question.settings
        room = self.context - len(prompt)
        if room < 1:
            remedy = f"prompts of at most {self.context - 1:,} tokens"
            text = f"the prompt has {len(prompt):,} tokens, the context {self.context:,}; use {remedy}"
            raise ContextError(text, where="messages", value=len(prompt), allowed=remedy)
        sampling = Sampling(s.temperature, s.top_k, s.top_p, seed=s.seed)
        ends = self.source.stop_ids | (self.conversation.ends if self.conversation else frozenset())
        return Request(prompt, min(s.max_tokens, room), sampling, ends, media=media)

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """A question whose prompt cannot be made or leaves no room for an answer is a failure."""
        for question, done in self._side_by_side(questions, self._request):
            yield question, done if isinstance(done, Failure) else self._answer(question, done)

    def _answer(self, question: Question, done: Completion) -> Answer:
        parts = [Part("text", done.text or "")]
        if self.conversation is not None:
            opened = self.conversation.open(question.messages, enable_thinking=question.settings.thinking)
            reader = AnswerReader(self.conversation.format, thinking=opened.thinking)
            parts = [*reader.push(done.text or ""), *reader.finish()]
        text, thinking = ("".join(part.text for part in parts if part.kind == kind) for kind in ("text", "thinking"))
        assert done.finish != "abort"  # nothing stops the engine of an evaluation
        return Answer(text, thinking, done.finish, len(done.prompt), len(done.ids))

    def score(self, passages: Iterable[Passage]) -> Iterator[tuple[Passage, PassageScore | Failure]]:
        """Texts that are longer than the context are scored in pieces; a piece starts with the last token of the one
        before it."""
        refused: dict[str, tuple[Passage, Failure]] = {}
        parts: dict[str, list[PassageScore]] = {}

        def pieces() -> Iterator[Piece]:
            for passage in passages:
                try:
                    yield from self._pieces(passage)
                except UserError as error:
                    refused[passage.id] = passage, Failure(str(error))

        for piece, done in self._side_by_side(pieces(), lambda piece: _scoring(piece.ids)):
            passage = piece.passage
            if isinstance(done, Failure):
                refused[passage.id] = passage, done
                continue
            assert done.prompt_scores is not None
            log_probs = done.prompt_scores.log_probs.tolist()
            if wrong := [value for value in log_probs if not is_log_prob(value)]:
                reason = f"{wrong[0]!r} is not a log-probability; the weights may be damaged"
                refused[passage.id] = passage, Failure(reason)
                continue
            of_piece = score_of(log_probs, piece.counted, None)
            parts.setdefault(passage.id, []).append(of_piece)
            if len(parts[passage.id]) == piece.of:
                whole = parts.pop(passage.id)
                size = None if passage.text is None else len(passage.text.encode())
                yield passage, PassageScore(sum(one.nats for one in whole), sum(one.tokens for one in whole), size)
        yield from refused.values()

    def _pieces(self, passage: Passage) -> Iterator[Piece]:
        if passage.text is None:
            yield Piece(passage, passage.ids, passage.counted[1:] if passage.counted else None, 1)
            return
        ids = self.source.prompt(passage.text)
        firsts = range(0, max(1, len(ids) - 1), self.context - 1)
        for first in firsts:
            yield Piece(passage, ids[first : first + self.context], None, len(firsts))

    def _side_by_side(
        self, things: Iterable[T], make: Callable[[T], Request]
    ) -> Iterator[tuple[T, Completion | Failure]]:
        """Serve the request that `make` makes of each thing; one that cannot be made or served is a failure."""
        waiting: dict[int, T] = {}
        todo = iter(things)
        held: tuple[T, Request] | None = None  # needs a larger cache, which is made once the engine is empty
        more = True
        while more or waiting or held:
            while more and not held and len(waiting) < 2 * self._batch:  # the engine admits the next as soon as it can
                try:
                    thing = next(todo)
                except StopIteration:
                    more = False
                    break
                try:
                    request = make(thing)
                    if len(request.prompt) + request.max_tokens > self._room:
                        held = thing, request
                    else:
                        waiting[self._running.submit(request)] = thing
                except UserError as error:
                    yield thing, Failure(str(error), final=isinstance(error, ContextError))
            if waiting:
                self._running.step()
                for number in sorted(self._running.done & waiting.keys()):
                    yield waiting.pop(number), self._running.result(number)
            elif held:
                thing, request = held
                held = None
                try:
                    self._make_room(len(request.prompt) + request.max_tokens)
                    waiting[self._running.submit(request)] = thing
                except UserError as error:
                    yield thing, Failure(str(error))

    @property
    def _room(self) -> int:
        """Tokens of the cache; 0 before the engine is made."""
        return 0 if self._engine is None else self._engine.pages.count * KEYS

    @property
    def _running(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def _make_room(self, tokens: int) -> None:
        """Make an engine with a cache for a request of so many tokens, where there is none or its cache is smaller.

        Weights are read when the first request comes, as all answers may be in the ledger. Raises SuiteError where
        `cache_tokens` does not allow it."""
        from trainer.engine.engine import Engine
        from trainer.model.exact.check import dependence_warning

        if self._cache_tokens is not None and tokens > self._cache_tokens:
            remedy = f"--cache-tokens={tokens} or more, or a smaller --max-tokens"
            text = f"a prompt with its longest answer has {tokens:,} tokens; use {remedy}"
            raise SuiteError(text, where="--cache-tokens", value=self._cache_tokens, allowed=remedy)
        even = 1 << (tokens - 1).bit_length()  # requests that are a little longer need no other engine
        room = self._cache_tokens or max(tokens, min(self._batch * even, CACHE_TOKENS))
        if self._engine is None:
            model = self.source.load(self._device(), towers=self._towers)
            if dependent := dependence_warning(model):
                print_warning(dependent)
        else:
            model = self._engine.model
        decode = self.tokenizer.decode if self.conversation is None else self.conversation.decode
        self._engine = None  # its cache is freed before the next one is made
        # A window that was held out has one token more than the model's longest document: the last label.
        self._engine = Engine(model, decode=decode, cache_tokens=room, batch=self._batch, context=self.context + 1)


def _scoring(ids: Sequence[int]) -> Request:
    return Request(ids, 0, score_prompt=True)


def _version(source: Source) -> Mapping[str, Any]:
    """JSON that changes with the weights: the hashes in a checkpoint's manifest, which is checked when it is loaded; of
    a Hugging Face directory, which has none, sizes and times of its files."""
    opened = source.opened
    if isinstance(opened, OpenedCheckpoint):
        return {"step": opened.step, "manifest": _digest([opened.files, opened.base])}
    files = sorted(opened.directory.path.glob("*.safetensors"))
    facts = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    return {"files": _digest([facts, opened.directory.config])}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
