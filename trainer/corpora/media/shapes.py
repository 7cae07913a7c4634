"""Drawings of shapes with captions in English, and texts in Chinese about such drawings."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.corpora.packages import Document, Files, Source
from trainer.corpora.pairs.drawings import drawing
from trainer.corpora.tokenize.media.documents import PartsDocument

DRAWINGS, TEXTS = 1500, 1500
SENTENCES = 4  # of a text
SEEDS = {"shapes": 100, "shapes_zh": 101}  # apart from those of the toy's pairs


def no_files() -> Files:
    return []


def read_shapes() -> Iterator[PartsDocument]:
    """A drawing and its caption."""
    for number in range(DRAWINGS):
        found = drawing(number, SEEDS["shapes"])
        image = {"type": "image", "bytes": found.jpeg()}
        yield PartsDocument(f"shapes/{number}", [image, f"{found.english()}.\n"])


def read_texts() -> Iterator[Document]:
    """Descriptions of drawings in Chinese."""
    for number in range(TEXTS):
        first = number * SENTENCES
        found = [drawing(one, SEEDS["shapes_zh"]).chinese() for one in range(first, first + SENTENCES)]
        yield Document(f"shapes_zh/{number}", "。".join([*found, "\n"]))


SHAPES = Source("shapes", ("pillow",), "drawn here", no_files, read_shapes)
SHAPES_ZH = Source("shapes_zh", (), "written here", no_files, read_texts)
