"""Zero-shot classification: images with the number of their class, and sentences that name the classes.

The form of the directories that CLIP benchmarks share: `classnames.txt`, a class a line; in
`zeroshot_classification_templates.txt` a sentence a line with {c} for the class; and tar files with an image and its
class in .cls. Every sentence of every class is encoded as a text; a class is the mean of its sentences.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.data.errors import DataError
from trainer.data.media.images import PatchRule
from trainer.data.pairs.index import PairIndex
from trainer.data.pairs.reader import Pairs, encode, joined, prepare
from trainer.data.shards.tokenizer import Tokenizer

CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
PLACE = "{c}"


class ZeroShot:
    """One set of images and classes. Raises DataError for a directory that is not one."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, rule: PatchRule, seq_len: int) -> None:
        self.index = PairIndex(directory)
        self.classes = _lines(directory / CLASSES)
        self.templates = _lines(directory / TEMPLATES)
        for template in self.templates:
            if PLACE not in template:
                path = str(directory / TEMPLATES)
                text = f"{path}: '{template}' has no {PLACE}, the place of the class; add it"
                raise DataError(text, where=path, value=template, allowed=PLACE)
        self._tokenizer, self._rule, self._seq_len = tokenizer, rule, seq_len

    @property
    def images(self) -> int:
        return len(self.index)

    @property
    def sentences(self) -> int:
        return len(self.classes) * len(self.templates)

    def read(self, first: int, count: int, images: int) -> Pairs:
        """Places first .. first + count - 1: of each the image, out of `images` evenly spread ones, and the sentence.

        Beyond the last of either the first ones come again, with the class -1. Raises DataError.
        """
        return joined([self._one(place, images) for place in range(first, first + count)])

    def _one(self, place: int, images: int) -> Pairs:
        (row,) = self.index.rows([place % images * self.images // images])
        patches, grid = prepare(self.index, row, self._rule)
        number, template = divmod(place % self.sentences, len(self.templates))
        sentence = self.templates[template].replace(PLACE, self.classes[number])
        tokens = encode(self._tokenizer, sentence, self._seq_len)
        classes = [self._class(row) if place < images else -1, number if place < self.sentences else -1]
        return Pairs(patches, [grid], tokens, np.array([len(tokens)]), np.zeros((1, 2), np.int64), np.array([classes]))

    def _class(self, row: np.void) -> int:
        text, where = self.index.text(row), self.index.place(row)
        if not text.isdecimal() or int(text) >= len(self.classes):
            allowed = f"0 to {len(self.classes) - 1}"
            raise DataError(
                f"{where}: class '{text}' is not one of {allowed}", where=where, value=text, allowed=allowed
            )
        return int(text)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        remedy = "give a directory with such a file"
        raise DataError(f"{path} cannot be read ({error}); {remedy}", where=str(path), allowed=remedy) from None
    if not (found := [line for line in lines if line]):
        raise DataError(f"{path} is empty; give it a line or more", where=str(path), allowed="a line or more")
    return found
