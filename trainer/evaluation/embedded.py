"""Answers from the embedded engine: a model of a run or of a Hugging Face directory, in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel.errors import UserError
from trainer.chat.errors import ChatError
from trainer.chat.template import ChatTemplate, find_template
from trainer.engine.load import Source, open_source
from trainer.engine.request import Request, RequestError, Sampling
from trainer.evaluation.asked import Answer, Failure, Question, media_of, text_of
from trainer.evaluation.suite import SuiteError
from trainer.weights.opened import OpenedCheckpoint

if TYPE_CHECKING:
    import torch

    from trainer.engine.engine import Engine

RAW = "--raw, which joins the texts of the messages"


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
        sampling = Sampling(s.temperature, s.top_k, s.top_p, seed=s.seed)
        return Request(prompt, max(1, min(s.max_tokens, room)), sampling, self.source.stop_ids)

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """A question whose prompt cannot be made or leaves no room for an answer is a failure."""
        waiting: dict[int, Question] = {}
        todo = iter(questions)
        more = True
        while more or waiting:
            while more and len(waiting) < 2 * self._batch:  # the engine admits the next as soon as there is room
                question = next(todo, None)
                if question is None:
                    more = False
                    break
                engine = self._started(question.settings.max_tokens)
                try:
                    waiting[engine.submit(self._request(question))] = question
                except (ChatError, RequestError, UserError) as error:
                    yield question, Failure(str(error))
            if not waiting:
                continue
            engine = self._started(0)
            engine.step()
            for number in sorted(engine.done & waiting.keys()):
                done = engine.result(number)
                text = Answer(done.text or "", "", done.finish, len(done.prompt), len(done.ids))
                yield waiting.pop(number), text

    def _started(self, max_tokens: int) -> Engine:
        """The engine; weights are read when the first question comes, as all answers may be in the ledger."""
        if self._engine is None:
            from trainer.engine.engine import Engine

            most = min(self.context, max_tokens + self.context // 2)
            tokens = self._cache_tokens or max(self.context, min(self._batch * most, 262_144))
            self._engine = Engine(
                self.source.load(self._device()), decode=self.tokenizer.decode, cache_tokens=tokens, batch=self._batch
            )
        return self._engine


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
