"""The questions of a run, in its order.

Question n of a run is question n mod N of epoch n div N, each epoch in an order of its own, so the state of a run is
one integer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.chats.tokens import ChatTokenizer
from trainer.data.hashing import mix64
from trainer.data.mixture.permutation import permute
from trainer.data.questions.records import QuestionRecord
from trainer.data.shards.tokenizer import Tokenizer

ORDER = 4  # the purpose of a hash: the order of an epoch


@dataclass(frozen=True)
class Asked:
    """A question with the ids of its prompt. number: of the record among all of the run. answer: ids of the answer with
    the token that ends it. opens: the mark of thinking that the prompt ends with, if it does."""

    number: int
    source: str
    record: QuestionRecord
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    opens: str = ""


class Questions:
    """The questions of a run. train: those of all sources; heldout: by source. tokenizer: of prompts and answers.
    conversation: the chat template of prompts that are messages; None where there are none."""

    def __init__(
        self,
        train: Sequence[Asked],
        heldout: Mapping[str, Sequence[Asked]],
        tokenizer: Tokenizer,
        seed: int,
        conversation: ChatTokenizer | None = None,
    ) -> None:
        self.train, self.heldout, self.tokenizer, self._seed = train, heldout, tokenizer, seed
        self.conversation = conversation
        self.ends = frozenset({tokenizer.eos_id}) | (conversation.ends if conversation is not None else frozenset())

    def ask(self, first: int, count: int) -> list[Asked]:
        """Questions first .. first + count - 1 of the run."""
        return self.pick(range(first, first + count))

    def pick(self, numbers: Sequence[int]) -> list[Asked]:
        """Questions of the run by their numbers."""
        if not numbers:
            return []
        wanted, size = np.array(numbers), len(self.train)
        keys = np.concatenate([mix64(self._seed, ORDER, int(epoch)) for epoch in wanted // size])
        return [self.train[at] for at in permute(wanted % size, np.full(len(wanted), size), keys).tolist()]

    def text_of(self, asked: Asked, ids: Sequence[int]) -> str:
        """The text of an answer as a reward reads it: thinking that the prompt opened has its mark."""
        return asked.opens + self.tokenizer.answer_text(ids, self.ends)
