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
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.chat.errors import ChatError
from trainer.data.batch import Batch, LateBatch, make_batch
from trainer.data.chats.tokens import ChatTokenizer, open_tokenizer
from trainer.data.errors import DataError
from trainer.data.hashing import mix64, text_key
from trainer.data.protocols import ChatFiles, Data, TokenizerFile
from trainer.data.questions.asked import Asked, Questions
from trainer.data.questions.prepare import Preparer
from trainer.data.questions.records import QuestionRecord, read_questions
from trainer.data.shards.around import template_of
from trainer.data.shards.tokenizer import Tokenizer, tokenizer_file
from trainer.data.text import TextStream
from trainer.data.windows import Windows

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig
    from trainer.config.mixture import QuestionSourceConfig

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
    files = {name: _read(name, source, Path(data.root)) for name, source in data.questions.items()}
    path = _tokenizer_path(data, weights, kept)
    tokenizer = Tokenizer.load(path)
    tokenizer.before = [*template_of(tokenizer, path).before]
    conversation = _conversation(data, weights, kept, [one for some in files.values() for one, _ in some])
    prepare = Preparer(tokenizer, conversation, data.seq_len).prepare
    made_from = hashlib.sha256(path.read_bytes() if conversation is None else conversation.key.encode())
    train: list[Asked] = []
    heldout: dict[str, list[Asked]] = {}
    numbers = count()
    for name, source in data.questions.items():
        heldout[name] = []
        for record, held in files[name]:
            out = held if source.heldout else _held_out(record.text, data.holdout_fraction)
            (heldout[name] if out else train).append(prepare(next(numbers), name, record))
            made_from.update(json.dumps([name, out, record.text, record.answer], sort_keys=True).encode())
        _refuse_empty(name, source.path, train, heldout[name])
    _refuse_shared(train, heldout)
    made_from.update(json.dumps([data.seq_len, seed]).encode())
    questions = Questions(train, heldout, tokenizer, seed, conversation)
    shares = {name: float(sum(one.source == name for one in train)) for name in data.questions}

    def read(first: int, count: int) -> Windows:
        return _windows(questions.ask(first, count), data.seq_len, tokenizer.eos_id)

    found = Data(
        stream=TextStream(read, shares),
        heldout=_HeldOut(questions, data.seq_len),
        fingerprint=made_from.hexdigest(),
        tokenizer=_kept_as(tokenizer, path, conversation),
        questions=questions,
    )
    return found, tokenizer.vocab_size


def _read(name: str, source: QuestionSourceConfig, root: Path) -> list[tuple[QuestionRecord, bool]]:
    """The records of a source, each with True for one of its held-out file."""
    path, heldout = root / source.path, root / source.heldout if source.heldout else None
    found = [(record, False) for record in read_questions(path)]
    if heldout is None:
        return found
    if heldout.exists() and path.samefile(heldout):
        where, allowed = f"data.questions.{name}.heldout", "another file, or none"
        text = f"{where}={source.heldout} is the file that is trained on; give {allowed}"
        raise DataError(text, where=where, value=source.heldout, allowed=allowed)
    return [*found, *((record, True) for record in read_questions(heldout))]


def _conversation(
    data: DataConfig, weights: Path | None, kept: Path | None, records: Sequence[QuestionRecord]
) -> ChatTokenizer | None:
    """The chat template of the records that are messages; None where there are none."""
    first = next((one for one in records if not isinstance(one.prompt, str)), None)
    if first is None:
        return None
    try:
        return open_tokenizer(data, weights, kept)
    except ChatError as error:
        text = f"{first.where}: the prompt is a list of messages: {error}"
        raise DataError(text, where=first.where, value=error.value, allowed=error.allowed) from error


def _kept_as(tokenizer: Tokenizer, path: Path, conversation: ChatTokenizer | None) -> TokenizerFile:
    if conversation is None:
        return TokenizerFile(path, tokenizer.end_of_document, tuple(tokenizer.before))
    ends, template = tuple(sorted(conversation.ends)), conversation.template
    files = ChatFiles(dict(template.texts), dict(template.special_tokens), ends)
    return TokenizerFile(path, conversation.token(ends[0]) or "", chat=files)


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


def _held_out(text: str, fraction: float) -> bool:
    """A function of the text alone: adding questions moves no other."""
    return int(mix64(SPLIT, text_key(text))[0]) < fraction * 2**64


def _refuse_empty(name: str, path: str, train: Sequence[Asked], heldout: Sequence[Asked]) -> None:
    if not any(one.source == name for one in train) or not heldout:
        what, allowed = ("held-out" if not heldout else "training"), "more questions, or another data.holdout_fraction"
        text = f"data.questions.{name}: {path} has no {what} question; use {allowed}"
        raise DataError(text, where=f"data.questions.{name}", value=path, allowed=allowed)


def _refuse_shared(train: Sequence[Asked], heldout: Mapping[str, Sequence[Asked]]) -> None:
    """Raise DataError for a held-out question that any source trains on."""
    held = {one.record.text: one.record.where for some in heldout.values() for one in some}
    shared = [one.record for one in train if one.record.text in held]
    if shared:
        first = shared[0]
        allowed = "other questions in one of the files"
        text = (
            f"{first.where}: the question is also held out, in {held[first.text]} ({len(shared):,} such questions in "
            f"all); put {allowed}"
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
