"""Answers from the embedded engine: a model of a run or of a Hugging Face directory, in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from parallel.errors import UserError
from trainer.chat.template import ChatTemplate, find_template
from trainer.engine.load import Source, open_source
from trainer.engine.request import Completion, Request, Sampling
from trainer.evaluation.asked import Answer, Failure, Question, media_of, text_of
from trainer.evaluation.perplexity import Passage, PassageScore, score_of
from trainer.evaluation.suite import SuiteError
from trainer.weights.opened import OpenedCheckpoint

if TYPE_CHECKING:
    import torch

    from trainer.engine.engine import Engine

T = TypeVar("T")
RAW = "--raw, which joins the texts of the messages"


class Piece(NamedTuple):
    """The part of a passage that is scored at once. counted: of the ids behind the first; None: all. of: pieces of the
    passage."""

    passage: Passage
    ids: Sequence[int]
    counted: Sequence[bool] | None
    of: int


class EmbeddedModel:
    """A model of this machine.

    path: a run, a step-N directory or a Hugging Face directory. device: called before weights are read. raw: the prompt
    is the texts of the messages, with an empty line between two, instead of what the chat template renders. batch:
    answers side by side. cache_tokens: of the engine; None: `batch` of the longest answers, at most 262,144 or one.
    Raises what `open_source` raises, SuiteError without a tokenizer or chat template.
    """

    def __init__(
        self,
        path: Path,
        device: Callable[[], torch.device],
        *,
        raw: bool = False,
        batch: int = 16,
        cache_tokens: int | None = None,
    ) -> None:
        self.source: Source = open_source(path)
        self.name, self.context = str(path), self.source.model.max_position
        self.tokenizer = self.source.require_tokenizer()
        self.template: ChatTemplate | None = None if raw else find_template(path)
        if self.template is None and not raw:
            text = f"{path} has no chat template, so it is not known how to ask it; use {RAW}"
            raise SuiteError(text, where=str(path), allowed=RAW)
        self._device, self._batch, self._cache_tokens = device, batch, cache_tokens
        self.identity = {"weights": _version(path, self.source), "prompt": self._prompt_version(raw)}
        self._engine: Engine | None = None

    def _prompt_version(self, raw: bool) -> str:
        how = {"tokenizer": self.tokenizer.state, "templates": dict(self.template.texts) if self.template else None}
        return hashlib.sha256(json.dumps([how, raw], sort_keys=True).encode()).hexdigest()

    def prompt(self, question: Question) -> list[int]:
        """Token ids. Raises UserError for messages that the template or the tokenizer refuses, and for media."""
        if any(media_of(message) for message in question.messages):
            remedy = "a server's URL"
            raise SuiteError("media cannot be given to the embedded engine", where="messages", allowed=remedy)
        if self.template is None:
            return self.source.prompt("\n\n".join(text_of(message) for message in question.messages))
        text = self.template.render(
            question.messages, add_generation_prompt=True, enable_thinking=question.settings.thinking
        )
        (ids,) = self.tokenizer.encode_all([text])  # the template wrote what opens a document
        return ids

    def _request(self, question: Question) -> Request:
        prompt, s = self.prompt(question), question.settings
        room = self.context - len(prompt)
        if room < 1:
            remedy = f"prompts of at most {self.context - 1:,} tokens"
            text = f"the prompt has {len(prompt):,} tokens, the context {self.context:,}; use {remedy}"
            raise SuiteError(text, where="messages", value=len(prompt), allowed=remedy)
        sampling = Sampling(s.temperature, s.top_k, s.top_p, seed=s.seed)
        return Request(prompt, min(s.max_tokens, room), sampling, self.source.stop_ids)

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """A question whose prompt cannot be made or leaves no room for an answer is a failure."""
        for question, done in self._side_by_side(questions, self._request, lambda one: one.settings.max_tokens):
            if isinstance(done, Failure):
                yield question, done
            else:
                yield question, Answer(done.text or "", "", done.finish, len(done.prompt), len(done.ids))

    def score(self, passages: Iterable[Passage]) -> Iterator[tuple[Passage, PassageScore | Failure]]:
        """Texts that are longer than the context are scored in pieces; a piece starts with the last token of the one
        before it."""
        refused: list[tuple[Passage, Failure]] = []
        parts: dict[str, list[PassageScore]] = {}

        def pieces() -> Iterator[Piece]:
            for passage in passages:
                try:
                    yield from self._pieces(passage)
                except UserError as error:
                    refused.append((passage, Failure(str(error))))

        for piece, done in self._side_by_side(pieces(), lambda piece: _scoring(piece.ids), None):
            passage = piece.passage
            if isinstance(done, Failure):
                refused.append((passage, done))
                continue
            assert done.prompt_scores is not None
            of_piece = score_of(done.prompt_scores.log_probs.tolist(), piece.counted, None)
            parts.setdefault(passage.id, []).append(of_piece)
            if len(parts[passage.id]) == piece.of:
                whole = parts.pop(passage.id)
                size = None if passage.text is None else len(passage.text.encode())
                yield passage, PassageScore(sum(one.nats for one in whole), sum(one.tokens for one in whole), size)
        yield from refused

    def _pieces(self, passage: Passage) -> Iterator[Piece]:
        if passage.text is None:
            yield Piece(passage, passage.ids, passage.counted[1:] if passage.counted else None, 1)
            return
        ids = self.source.prompt(passage.text)
        firsts = range(0, max(1, len(ids) - 1), self.context - 1)
        for first in firsts:
            yield Piece(passage, ids[first : first + self.context], None, len(firsts))

    def _side_by_side(
        self, things: Iterable[T], make: Callable[[T], Request], answer_tokens: Callable[[T], int] | None
    ) -> Iterator[tuple[T, Completion | Failure]]:
        """Serve the request that `make` makes of each thing; one that cannot be made or served is a failure."""
        waiting: dict[int, T] = {}
        todo, more = iter(things), True
        while more or waiting:
            while more and len(waiting) < 2 * self._batch:  # the engine admits the next as soon as there is room
                try:
                    thing = next(todo)
                except StopIteration:
                    more = False
                    break
                engine = self._started(answer_tokens(thing) if answer_tokens else 0)
                try:
                    waiting[engine.submit(make(thing))] = thing
                except UserError as error:
                    yield thing, Failure(str(error))
            if not waiting:
                continue
            engine = self._started(0)
            engine.step()
            for number in sorted(engine.done & waiting.keys()):
                yield waiting.pop(number), engine.result(number)

    def _started(self, max_tokens: int) -> Engine:
        """The engine; weights are read when the first question comes, as all answers may be in the ledger."""
        if self._engine is None:
            from trainer.engine.engine import Engine

            most = min(self.context, max_tokens + self.context // 2)
            tokens = self._cache_tokens or max(self.context, min(self._batch * most, 262_144))
            # A window that was held out has one token more than the model's longest document: the last label.
            self._engine = Engine(
                self.source.load(self._device()), decode=self.tokenizer.decode, cache_tokens=tokens + 1,
                batch=self._batch, context=self.context + 1,
            )  # fmt: skip
        return self._engine


def _scoring(ids: Sequence[int]) -> Request:
    return Request(ids, 0, score_prompt=True)


def _version(path: Path, source: Source) -> Mapping[str, Any]:
    """JSON that changes with the weights: the hashes in a checkpoint's manifest, which is checked when it is loaded; of
    a Hugging Face directory, which has none, sizes and times of its files."""
    opened = source.opened
    if isinstance(opened, OpenedCheckpoint):
        return {"step": opened.step, "manifest": _digest(opened.files)}
    files = sorted(path.glob("*.safetensors"))
    facts = {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}
    return {"files": _digest([facts, opened.directory.config])}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
