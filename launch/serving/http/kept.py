"""Answers that are kept on disk, so that a server that was killed asks its model nothing twice.

An answer to a request with a seed, or at temperature 0, follows from the request and the weights. It is on disk before
it is sent, and after a restart an equal request gets it again. The experts of its tokens are not kept: requests that
ask for them are computed each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.chat.template import ChatTemplate
from trainer.config.errors import CommandError
from trainer.engine.load import Source
from trainer.engine.request import Completion, Request, Scores, Token
from trainer.engine.text import Decode, TextStream
from trainer.storage.ledger import Ledger, LedgerLineError
from trainer.storage.lock import LockedError
from trainer.storage.manifest import digest
from trainer.weights.lora.base import identify
from trainer.weights.opened import OpenedCheckpoint


def version_of(source: Source, template: ChatTemplate | None = None) -> str:
    """A hash that changes with the weights, the tokenizer and the chat template. Raises HuggingFaceError."""
    opened = source.opened
    if isinstance(opened, OpenedCheckpoint):
        weights: dict[str, Any] = {"step": opened.step, "files": opened.files, "base": opened.base}
    else:
        found = identify(opened.directory.path)
        weights = {name: value for name, value in found.items() if name != "path"}
    spoken = None if template is None else [dict(template.texts), dict(template.special_tokens)]
    return digest([weights, source.require_tokenizer().state, source.linears, source.experts, spoken])


def open_kept(path: Path, version: str) -> KeptAnswers:
    """Raises CommandError for a file that another process uses, or that is not one of answers."""
    try:
        return KeptAnswers(Ledger(path), version)
    except LockedError:
        remedy = "another --answers, or end the process that uses it"
        text = f"--answers={path} is in use by another process; use {remedy}"
        raise CommandError(text, where="--answers", value=str(path), allowed=remedy) from None
    except LedgerLineError as error:
        remedy = "another file"
        text = f"--answers={path}, line {error.line}: {error.reason}; use {remedy}"
        raise CommandError(text, where="--answers", value=error.text, allowed=remedy) from None


class KeptAnswers:
    """Answers of one version of the weights in a ledger, which may have those of others too."""

    def __init__(self, ledger: Ledger, version: str) -> None:
        self._ledger, self._version = ledger, version

    def add(self, request: Request, done: Completion) -> None:
        """Raises OSError."""
        entry = {
            "ids": done.ids,
            "scores": _written(done.scores),
            "prompt_scores": None if done.prompt_scores is None else _written(done.prompt_scores),
            "text": done.text,
            "finish": done.finish,
            "reused": done.reused,
        }
        self._ledger.add(self._key(request), entry)

    def find(self, request: Request) -> Completion | None:
        entry = self._ledger.get(self._key(request))
        if entry is None:
            return None
        scores, of_prompt = _read(entry["scores"], request.alternatives), entry["prompt_scores"]
        return Completion(
            tuple(request.prompt),
            tuple(entry["ids"]),
            scores,
            None if of_prompt is None else _read(of_prompt, request.alternatives),
            np.zeros((0, 0, 0), np.uint16),
            entry["text"],
            entry["finish"],
            entry["reused"],
        )

    def close(self) -> None:
        self._ledger.__exit__(None, None, None)

    def _key(self, request: Request) -> str:
        how = request.sampling
        return digest(
            [
                self._version, [*request.prompt], request.max_tokens, sorted(request.stop_ids), [*request.stop],
                [how.temperature, how.top_k, how.top_p, how.min_p, how.seed if how.temperature else 0],
                [how.repetition_penalty, how.presence_penalty, how.frequency_penalty, [*how.logit_bias]],
                request.score_prompt, request.alternatives, [medium.digest.hex() for medium in request.media],
            ]
        )  # fmt: skip


def _written(scores: Scores) -> list[Any]:
    return [scores.log_probs.tolist(), scores.ids.tolist(), scores.of_ids.tolist()]


def _read(written: Sequence[Any], alternatives: int) -> Scores:
    log_probs, ids, of_ids = written
    places = len(log_probs)
    return Scores(
        np.array(log_probs, np.float32),
        np.array(ids, np.int64).reshape(places, alternatives),
        np.array(of_ids, np.float32).reshape(places, alternatives),
    )


def tokens_of(done: Completion, request: Request, decode: Decode | None) -> list[Token]:
    """The tokens of an answer as the engine returned them, one by one."""
    stream = None if decode is None else TextStream(decode, request.stop)
    found = []
    for place, token in enumerate(done.ids):
        last = place == len(done.ids) - 1
        text = None if stream is None else stream.push(token) + (stream.finish() if last else "")
        likely = tuple(zip(done.scores.ids[place].tolist(), done.scores.of_ids[place].tolist(), strict=True))
        log_prob = float(done.scores.log_probs[place])
        found.append(Token(-1, token, log_prob, text, done.finish if last else None, likely))
    return found
