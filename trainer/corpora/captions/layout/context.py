"""Text about a region: paragraphs that name its label, and those around it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.layout.labels import FIGURE, NUMBER, TABLE, Caption
from trainer.corpora.captions.layout.text import Block

MOST_MENTIONS, MOST_AROUND = 3, 2
MOST_CHARACTERS = 2000
Mentions = dict[tuple[str, str], list[str]]  # by kind and number of a caption: paragraphs that name it

_NAMED = re.compile(rf"({'|'.join(map(re.escape, (*FIGURE, *TABLE)))})s?\.?\s*({NUMBER})(?![\w-])", re.IGNORECASE)


def mentions_of(paragraphs: Iterable[str]) -> Mentions:
    """The paragraphs that name each figure and table, in their order, `MOST_MENTIONS` of them at most."""
    found: Mentions = {}
    for text in paragraphs:
        for word, number in {(match[1].lower(), match[2].upper()) for match in _NAMED.finditer(text)}:
            some = found.setdefault(("figure" if word in FIGURE else "table", number), [])
            if len(some) < MOST_MENTIONS:
                some.append(text)
    return found


def context_of(caption: Caption | None, box: Box, page: Sequence[Block], mentions: Mentions) -> str:
    """At most `MOST_CHARACTERS` characters: paragraphs of the document that name the caption's label, then the nearest
    ones of the page. page: paragraphs of the page that the box is on."""
    found = [] if caption is None else list(mentions.get(caption.number, ()))
    near = sorted(page, key=lambda block: _distance(block.box, box))[:MOST_AROUND]
    found += [block.text for block in near if block.text not in found]
    return "\n\n".join(found)[:MOST_CHARACTERS].rstrip()


def _distance(one: Box, other: Box) -> float:
    """The distance of two boxes, in points."""
    x = max(one[0] - other[2], other[0] - one[2], 0.0)
    y = max(one[1] - other[3], other[1] - one[3], 0.0)
    return float((x * x + y * y) ** 0.5)
