"""System prefixes that keep domains apart: every document of a source begins with one of its group's.

A model that has read "This is a text about science." before a document knows which of two conflicting ways of writing
it is in. That works only if no group's prefix can be taken for another's, as text and as tokens.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt

from trainer.data.hashing import mix64, text_key
from trainer.data.protocols import TextTokenizer

Ints = npt.NDArray[np.int64]
Ids = Mapping[str, Sequence[Sequence[int]]]  # group -> the token ids of its paraphrases


class Prefixes:
    """Groups of paraphrases. `groups`: name -> texts; `ids`: the same, tokenised."""

    def __init__(self, groups: Mapping[str, Sequence[str]], tokenizer: TextTokenizer) -> None:
        self.groups = {group: list(texts) for group, texts in groups.items()}
        self.ids = {group: [tokenizer.encode(text) for text in texts] for group, texts in groups.items()}

    def problems(self) -> list[str]:
        """Why documents' groups could not be told apart, a line each; empty if they can."""
        empty = [
            f"data.prefixes.{group}[{number}] has no token: {self.groups[group][number]!r}"
            for group, paraphrases in self.ids.items()
            for number, ids in enumerate(paraphrases)
            if not ids
        ]
        return empty + clashes(self.ids)

    def choose(self, group: str, source: str, documents: Ints, seed: int) -> Ints:
        """Which paraphrase each document of a source gets: a hash of seed, source and document number alone."""
        hashes = mix64(seed, text_key("prefix", source), documents)
        return (hashes % np.uint64(len(self.groups[group]))).astype(np.int64)


def clashes(ids: Ids) -> list[str]:
    """Paraphrases whose tokens begin with another's, a line each; empty if there are none.

    Of different groups: else a document's group is not certain. Within a group too: else tokens do not say where a
    prefix ends and its document begins.
    """
    every = [
        (f"data.prefixes.{group}[{number}]", list(tokens))
        for group, paraphrases in ids.items()
        for number, tokens in enumerate(paraphrases)
    ]
    return [
        f"{longer} begins with the tokens of {shorter}, so that the two cannot be told apart; change one of them"
        for (shorter, begin), (longer, tokens) in permutations(every, 2)
        if begin and tokens[: len(begin)] == begin and (tokens != begin or shorter < longer)
    ]
