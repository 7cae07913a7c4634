"""Captions by how they open and how they are set: "Fig. 2", "Table S1:", "Abb. 3", "图 2"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.layout.text import SAME_SIZE, Block

FIGURE = (
    "figure", "fig", "figura", "abbildung", "abb", "grafik", "afbeelding", "afb", "figuur", "obrázek", "obr", "rysunek",
    "rys", "slika", "ábra", "kuva", "şekil", "рисунок", "рис", "scheme", "schema", "schéma", "chart", "plate",
    "图", "圖", "図", "그림",
)  # fmt: skip
TABLE = ("table", "tab", "tabelle", "tableau", "tabla", "tabela", "tabella", "tabel", "tabulka", "tablica", "taulukko",
         "tablo", "таблица", "табл", "表", "표")  # fmt: skip
BEFORE = r"(?:supplementary|supplemental|supporting|extended\s+data|online|appendix)\s+"
NUMBER = r"(?:[A-Z]{1,2}[.\-]?)?\d{1,3}(?:[.\-–]\d{1,3})*[a-z]?|[IVX]{1,6}|[A-Z]\d{0,3}"
ENDS = r"[.:|：．。]|\s[–—\-|]\s|[–—]"

_WORDS = "|".join(sorted(map(re.escape, (*FIGURE, *TABLE)), key=len, reverse=True))
_OPENING = re.compile(
    rf"\s*(?P<label>(?:{BEFORE})?(?P<word>{_WORDS})(?P<dot>\.?)\s*(?P<number>{NUMBER}))(?P<end>{ENDS})?(?P<space>\s|$)?",
    re.IGNORECASE,
)
_EAST = re.compile("[\u3040-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True)
class Caption:
    """A block of text that opens with a label. kind: figure or table. label: such as "Fig. 2"."""

    kind: Literal["figure", "table"]
    label: str
    block: Block

    @property
    def text(self) -> str:
        return self.block.text

    @property
    def box(self) -> Box:
        return self.block.box

    @property
    def number(self) -> tuple[str, str]:
        """Equal for the captions of one figure, and for nothing else of a document."""
        return self.kind, re.sub(r"^\D*?(?=[A-Z]*\d|[IVX]+$)", "", self.label.split()[-1]).upper()


def body_size(blocks: Sequence[Block]) -> float:
    """The size that most letters have, in points; 0 without letters."""
    sizes: Counter[float] = Counter()
    for block in blocks:
        for line in block.lines:
            if line.upright:
                sizes[line.size] += len(line.letters)
    return max(sizes, key=lambda size: (sizes[size], size)) if sizes else 0.0


def captions_of(blocks: Sequence[Block], size: float) -> list[Caption]:
    """The captions among blocks. size: of the body's text.

    A sentence that opens with "Figure 2 shows" is not a caption: without a mark after the number, the label has to be
    set in another font than what follows, or the block in another size than the body.
    """
    found = []
    for block in blocks:
        line = block.lines[0]
        if not line.upright:
            continue
        match = _OPENING.match(line.text)
        if match is None or not _is_label(match):
            continue
        if match["end"] is None and not _set_apart(block, match, size):
            continue
        word = match["word"].lower()
        label = " ".join(match["label"].split())
        found.append(Caption("figure" if word in FIGURE else "table", label, block))
    return found


def _is_label(match: re.Match[str]) -> bool:
    """Return False where the number is a part of a word, as in "Table of", or the word is not a name, as in "fig 2"."""
    number, word = match["number"], match["word"]
    if _EAST.match(word):
        return number[0].isdigit() and (match["end"] is not None or match["space"] is not None)
    if not word[0].isupper():
        return False
    if number[0].isdigit() or number.isupper():
        tail = match.string[match.end("number") :]
        return not tail[:1].isalnum()
    return False


def _set_apart(block: Block, match: re.Match[str], size: float) -> bool:
    if abs(block.size - size) > SAME_SIZE * size:
        return True
    letters = block.lines[0].letters
    count = len(re.sub(r"\s", "", match["label"]))
    if _EAST.match(match["word"]):
        return True
    label, rest = {letter.font for letter in letters[:count]}, {letter.font for letter in letters[count:]}
    return bool(rest) and not label & rest
