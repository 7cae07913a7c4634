"""Text about a region: paragraphs that name its label, and those around it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.layout.labels import FIGURE, TABLE, Caption
from trainer.corpora.captions.layout.text import Block

MOST_MENTIONS, MOST_AROUND = 3, 2
MOST_CHARACTERS = 2000


def context_of(caption: Caption | None, box: Box, page: Sequence[Block], document: Sequence[str]) -> str:
    """At most `MOST_CHARACTERS` characters: paragraphs of the document that name the caption's label, then the nearest
    ones of the page.

    page: paragraphs of the page that the box is on. document: the texts of all its paragraphs.
    """
    found: list[str] = []
    if caption is not None:
        kind, number = caption.number
        words = "|".join(map(re.escape, FIGURE if kind == "figure" else TABLE))
        named = re.compile(rf"(?:{words})s?\.?\s*{re.escape(number)}(?![\w-])", re.IGNORECASE)
        found = [text for text in document if number in text and named.search(text)][:MOST_MENTIONS]
    near = sorted(page, key=lambda block: _distance(block.box, box))[:MOST_AROUND]
    found += [block.text for block in near if block.text not in found]
    return "\n\n".join(found)[:MOST_CHARACTERS].rstrip()


def _distance(one: Box, other: Box) -> float:
    """The distance of two boxes, in points."""
    x = max(one[0] - other[2], other[0] - one[2], 0.0)
    y = max(one[1] - other[3], other[1] - one[3], 0.0)
    return float((x * x + y * y) ** 0.5)
