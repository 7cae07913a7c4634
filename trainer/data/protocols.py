"""The interface between a run and its data: a stream to train on and held-out samples to measure by.

Another kind of data (images, signals, pairs, dialogues) implements `Stream` and `HeldOut`; the training loop hands the
inputs of their batches to the model without looking inside. Text adds its windows and tokenizer. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trainer.data.batch import Batch, LateBatch
    from trainer.data.media.rules import Rule
    from trainer.data.questions.asked import Questions
    from trainer.data.windows import Windows

Split = Literal["train", "heldout"]


class Stream(Protocol):
    """Training samples, numbered from 0 without end; any of them can be read at any time.

    Step n of a run takes the samples n * global_batch .. (n + 1) * global_batch - 1, so the state of the data is one
    integer, whatever the number of ranks.
    """

    shares: Mapping[str, float]  # source -> its part of the samples, in any unit

    def batch(self, first: int, count: int) -> Batch:
        """Return samples first .. first + count - 1.

        Raises ValueError for a number below 0, DataError for a sample that cannot be read.
        """


class HeldOut(Protocol):
    """Samples that are never trained on, by source."""

    sources: Sequence[str]

    def batches(self, source: str, count: int, micro_batch: int) -> Iterator[Batch | LateBatch]:
        """Yield `count` batches of `micro_batch` samples of a source, or fewer where it has fewer.

        Every call yields the same samples.
        """


class TextTokenizer(Protocol):
    """Text to token ids and back. `encode` never returns `eos_id`, which ends a document."""

    @property
    def eos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class TextSplits(Protocol):
    """The windows of text that samples are made of, by split and source.

    Beside a stream, for what measures a corpus rather than a model: unigram frequencies count windows evenly spread
    over each source, and a prompt is the start of a window.
    """

    shares: Mapping[str, float]  # source -> its part of the training samples, in any unit
    vocab_size: int  # tokens that the tokenizer has
    unigram_windows: int  # windows of each split and source that unigram frequencies are counted on

    @property
    def tokenizer(self) -> TextTokenizer: ...

    def positions(self, split: Split, source: str, count: int) -> npt.NDArray[np.int64]:
        """Return [B] numbers of at most `count` windows, the same at every call."""

    def read_split(self, split: Split, source: str, positions: npt.NDArray[np.int64], *, media: bool = True) -> Windows:
        """Return the windows at `positions` [B]. media: False leaves images and signals unread."""


@dataclass(frozen=True)
class ChatFiles:
    """Chat templates by name, the special tokens that they read, and the ids that end a turn of the assistant, the most
    frequent first."""

    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class TokenizerFile:
    """The tokenizer.json that made a corpus, the token that ends its documents, and the ids that open each. chat: of
    chats, whose turns that token ends."""

    path: Path
    end_of_document: str
    before: tuple[int, ...] = ()
    chat: ChatFiles | None = None


@dataclass(frozen=True)
class Data:
    """Everything a run reads.

    fingerprint: changes with any sample, so that a run does not resume on other data by accident. text: None for data
    that are not text; a run then logs neither the unigram baseline nor sample texts. tokenizer: None where no file
    has it. zero_shot: images of known classes, beside sentences about the classes, for data that are pairs. media: the
    rule of each kind of media (image, signal) that a source has, by source; None for data that are generated.
    questions: what the samples are made of, for data that are questions.
    """

    stream: Stream
    heldout: HeldOut
    fingerprint: str
    text: TextSplits | None = None
    tokenizer: TokenizerFile | None = None
    zero_shot: HeldOut | None = None
    media: Mapping[str, Mapping[str, Rule]] | None = None
    questions: Questions | None = None

    def describe(self) -> str:
        """Return one line for the log: the sources with their shares, the vocabulary of text, and the fingerprint."""
        total = sum(self.stream.shares.values())
        facts = [", ".join(f"{source} {share / total:.1%}" for source, share in self.stream.shares.items())]
        if self.text is not None:
            facts.append(f"vocabulary of {self.text.vocab_size:,} tokens")
        return "; ".join([*facts, f"fingerprint {self.fingerprint[:12]}"])
