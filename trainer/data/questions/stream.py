"""Questions as a run reads them.

As samples of text, for fine-tuning and for held-out losses, a question is a window of its own: its prompt, and its
answer as labels.

Shape legend: B windows · L = S + 1 tokens read for a window of S positions · N questions
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.batch import Batch, LateBatch, make_batch
from trainer.data.errors import DataError
from trainer.data.hashing import mix64, text_key
from trainer.data.protocols import Data, TokenizerFile
from trainer.data.questions.asked import Asked, Questions
from trainer.data.questions.records import QuestionRecord, read_questions
from trainer.data.shards.losses import Losses
from trainer.data.shards.tokenizer import Tokenizer, tokenizer_file
from trainer.data.text import TextStream
from trainer.data.windows import Windows

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

SPLIT = 5  # the purpose of a hash: the questions that are held out


class _HeldOut:
    """Implements `HeldOut`: each question is a sample."""

    def __init__(self, questions: Questions, seq_len: int) -> None:
        self.sources: Sequence[str] = list(questions.heldout)
        self._questions, self._seq_len = questions, seq_len

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[LateBatch]:
        found = self._questions.heldout[source][: count * micro_batch]
        for first in range(0, len(found), micro_batch):
            some = found[first : first + micro_batch]
            yield LateBatch([one.number for one in some], partial(self._batch, some))

    def _batch(self, some: Sequence[Asked]) -> Batch:
        windows = _windows(some, self._seq_len, self._questions.tokenizer.eos_id)
        return make_batch(windows, [one.number for one in some])


def open_questions(data: DataConfig, *, seed: int, weights: Path | None, kept: Path | None) -> tuple[Data, int]:
    """Open the sources of `data.questions`, and return the tokens of the vocabulary, too.

    weights: the directory of the published weights that the run starts from; kept: where the run keeps its tokenizer.
    Raises DataError, which names file and line.
    """
    path = _tokenizer_path(data, weights, kept)
    tokenizer = Tokenizer.load(path)
    losses = Losses(tokenizer)
    train: list[Asked] = []
    heldout: dict[str, list[Asked]] = {}
    made_from = hashlib.sha256(path.read_bytes())
    count = 0
    for name, source in data.questions.items():
        apart = bool(source.heldout)
        files = [(source.path, False), *([(source.heldout, True)] if apart else [])]
        _refuse_same_file(name, *(Path(data.root, file) for file, _ in files))
        heldout[name] = []
        for file, held in files:
            for record in read_questions(Path(data.root, file)):
                asked = _prepare(count, name, record, tokenizer, losses, data.seq_len)
                count += 1
                out = held if apart else _held_out(record.text, data.holdout_fraction)
                (heldout[name] if out else train).append(asked)
                made_from.update(json.dumps([name, out, record.text, record.answer], sort_keys=True).encode())
        _refuse_empty(name, source.path, train, heldout[name])
    _refuse_shared(train, heldout)
    made_from.update(json.dumps([data.seq_len, seed]).encode())
    questions = Questions(train, heldout, tokenizer, seed)
    shares = {name: float(sum(one.source == name for one in train)) for name in data.questions}

    def read(first: int, count: int) -> Windows:
        return _windows(questions.ask(first, count), data.seq_len, tokenizer.eos_id)

    found = Data(
        stream=TextStream(read, shares),
        heldout=_HeldOut(questions, data.seq_len),
        fingerprint=made_from.hexdigest(),
        tokenizer=TokenizerFile(path, tokenizer.end_of_document),
        questions=questions,
    )
    return found, tokenizer.vocab_size


def _tokenizer_path(data: DataConfig, weights: Path | None, kept: Path | None) -> Path:
    given = Path(data.tokenizer) if data.tokenizer is not None else None
    if given is None and kept is not None and tokenizer_file(kept).is_file():
        given = kept
    given = given or weights
    if given is None:
        allowed = "a tokenizer.json, or a directory with one"
        text = f"data.tokenizer is missing, and checkpoint.init_from, which has one, too; use {allowed}"
        raise DataError(text, where="data.tokenizer", allowed=allowed)
    return tokenizer_file(given)


def _prepare(
    number: int, source: str, record: QuestionRecord, tokenizer: Tokenizer, losses: Losses, seq_len: int
) -> Asked:
    if not isinstance(record.prompt, str):
        allowed = "a text"
        text = f"{record.where}: the prompt is a list of messages, and this run has no chat template; give {allowed}"
        raise DataError(text, where=record.where, value="messages", allowed=allowed)
    prompt = (*tokenizer.before, *_ids(record, "prompt", record.prompt, tokenizer, losses))
    ids = (*_ids(record, "answer", record.label, tokenizer, losses), tokenizer.eos_id)
    if len(prompt) + len(ids) > seq_len:
        length, allowed = len(prompt) + len(ids), "a larger data.seq_len"
        fault = f"{record.where}: question and answer have {length} tokens, and data.seq_len={seq_len}; use {allowed}"
        raise DataError(fault, where=record.where, value=length, allowed=allowed)
    return Asked(number, source, record, prompt, ids)


def _ids(record: QuestionRecord, part: str, text: str, tokenizer: Tokenizer, losses: Losses) -> list[int]:
    """The ids of a part of a question. Raises DataError for characters that the tokenizer does not know."""
    allowed = "a tokenizer that knows them as data.tokenizer, or other characters"
    try:
        (ids,) = tokenizer.encode_all([text])
        lost = losses.characters(text, ids)
    except DataError as error:
        lost = str(error.value)
    if lost:
        fault = f"{record.where}: the {part} has characters that the tokenizer does not know: {lost}; use {allowed}"
        raise DataError(fault, where=record.where, value=lost, allowed=allowed)
    return ids


def _held_out(text: str, fraction: float) -> bool:
    """A function of the text alone: adding questions moves no other."""
    return int(mix64(SPLIT, text_key(text))[0]) < fraction * 2**64


def _refuse_empty(name: str, path: str, train: Sequence[Asked], heldout: Sequence[Asked]) -> None:
    if not any(one.source == name for one in train) or not heldout:
        what, allowed = ("held-out" if not heldout else "training"), "more questions, or another data.holdout_fraction"
        text = f"data.questions.{name}: {path} has no {what} question; use {allowed}"
        raise DataError(text, where=f"data.questions.{name}", value=path, allowed=allowed)


def _refuse_same_file(name: str, path: Path, *heldout: Path) -> None:
    for other in heldout:
        if path.exists() and other.exists() and path.samefile(other):
            where, allowed = f"data.questions.{name}.heldout", "another file, or none"
            text = f"{where}={other} is the file that is trained on; give {allowed}"
            raise DataError(text, where=where, value=str(other), allowed=allowed)


def _refuse_shared(train: Sequence[Asked], heldout: Mapping[str, Sequence[Asked]]) -> None:
    """A question that is held out is trained on from no source."""
    held = {one.record.text: one.record.where for some in heldout.values() for one in some}
    shared = [one.record.where for one in train if one.record.text in held]
    if shared:
        first = next(one.record for one in train if one.record.text in held)
        allowed = "other questions in one of the files"
        text = (
            f"{first.where}: the question is held out, too, in {held[first.text]} ({len(shared):,} such in all); "
            f"put {allowed}"
        )
        raise DataError(text, where=first.where, value=held[first.text], allowed=allowed)


def _windows(asked: Sequence[Asked], seq_len: int, padding: int) -> Windows:
    shape = len(asked), seq_len + 1
    tokens_BL = np.full(shape, padding, np.int64)
    starts_BL, context_BL = np.zeros(shape, np.bool_), np.ones(shape, np.bool_)
    starts_BL[:, 0] = True
    for row, one in enumerate(asked):
        start, end = len(one.prompt), len(one.prompt) + len(one.answer)
        tokens_BL[row, :start], tokens_BL[row, start:end] = one.prompt, one.answer
        context_BL[row, start:end] = False
        starts_BL[row, end] = True
    return Windows(tokens_BL, starts_BL, context_BL)
