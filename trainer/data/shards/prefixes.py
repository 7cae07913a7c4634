"""System prefixes that separate domains: every document of a source opens with one of its group's.

A model that has read "This is a text about science." before a document knows which of two conflicting ways of writing
it is in. That works only if no group's prefix can be taken for another's, as text and as tokens.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import numpy.typing as npt

from parallel.errors import Fault
from trainer.data.hashing import mix64, text_key
from trainer.data.protocols import TextTokenizer

Ints = npt.NDArray[np.int64]
Ids = Mapping[str, Sequence[Sequence[int]]]  # group -> the token ids of its paraphrases


class Prefixes:
    """Groups of paraphrases. `groups`: name -> texts; `ids`: the same, tokenized."""

    def __init__(self, groups: Mapping[str, Sequence[str]], tokenizer: TextTokenizer) -> None:
        self.groups = {group: list(texts) for group, texts in groups.items()}
        self.ids = {group: [tokenizer.encode(text) for text in texts] for group, texts in groups.items()}

    def faults(self) -> list[Fault]:
        """Return the texts that do not distinguish their group; empty if every one does."""
        empty = [
            Fault(f"{key}={text!r} has no tokens; use another text", key, text, "another text")
            for group, paraphrases in self.ids.items()
            for number, ids in enumerate(paraphrases)
            if not ids
            for key, text in [(f"data.prefixes.{group}[{number}]", self.groups[group][number])]
        ]
        return empty + shared_starts(self.ids)

    def choose(self, group: str, source: str, documents: Ints, seed: int) -> Ints:
        """Return the paraphrase of each document [N] of a source: a hash of seed, source and document number."""
        hashes = mix64(seed, text_key("prefix", source), documents)
        return (hashes % np.uint64(len(self.groups[group]))).astype(np.int64)


def shared_starts(ids: Ids) -> list[Fault]:
    """Return the paraphrases whose first tokens are all of another's.

    In different groups they leave a document's group uncertain, within a group the end of its prefix.
    """
    every = [
        (f"data.prefixes.{group}[{number}]", list(tokens))
        for group, paraphrases in ids.items()
        for number, tokens in enumerate(paraphrases)
    ]
    return [
        Fault(
            f"{longer} starts with the tokens of {shorter}, so the two cannot be distinguished; change one of them",
            longer,
            tokens,
            f"a text that does not start with the tokens of {shorter}",
        )
        for (shorter, start), (longer, tokens) in permutations(every, 2)
        if start and tokens[: len(start)] == start and (tokens != start or shorter < longer)
    ]
