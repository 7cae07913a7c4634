"""Displayed formulas: short lines of their own with signs of mathematics, set in from the edge of their column."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.layout.boxes import overlap, shared, union
from trainer.corpora.captions.layout.page import Mark
from trainer.corpora.captions.layout.text import Block, Line

RELATIONS = set("=<>≤≥≈≡∼≃≅∝∈⊂⊆→↦⇒⇔≠≪≫±")
SIGNS = RELATIONS | set("+−∑∫∏√∂∇∞×⋅·/|^*")
NUMBER = re.compile(r"\(\s*(?:[A-Z]{1,2}[.\-]?)?\d{1,3}(?:[.\-]\d{1,3})*[a-z]?\s*\)|\[\d{1,3}\]")
WORD = re.compile(r"[^\W\d_]{4,}")
MATH_FONT = re.compile(r"cmmi|cmsy|cmex|math|symbol|mtextra|msam|msbm|euler", re.IGNORECASE)
CODE_FONT = re.compile(r"mono|courier|cmtt|typewriter|consol|menlo", re.IGNORECASE)
INDENT = 1.0  # in units of the letters' size: from the edge of the column
NEAR = 0.7  # between the lines of one formula, such as a limit and its sum
MOST_WORDS = 2  # words of four letters or more, such as "where" or "otherwise"


def formulas_of(lines: Sequence[Line], marks: Sequence[Mark], body: Sequence[Block], taken: Sequence[Box]) -> list[Box]:
    """The boxes of the displayed formulas, without their numbers.

    lines: level lines of the page that are in no caption. body: its paragraphs. taken: of figures and tables.
    """
    in_body = {id(line) for block in body if len(block.lines) > 1 for line in block.lines}
    free = [line for line in lines if line.upright and id(line) not in in_body
            and not any(shared(line.box, box) for box in taken)]  # fmt: skip
    numbers = [line for line in free if NUMBER.fullmatch(line.text.strip())]
    of_numbers = {id(line) for line in numbers}
    rest = [line for line in free if id(line) not in of_numbers]
    cores = [line for line in rest if _is_core(line, body, numbers)]
    boxes = [line.box for line in cores]
    heights = [line.size for line in cores]
    of_cores = {id(line) for line in cores}
    around = [line for line in rest if id(line) not in of_cores and not len(WORD.findall(line.text)) > MOST_WORDS]
    bars = [mark.box for mark in marks if mark.thin and mark.box[2] - mark.box[0] < 150]
    changed = True
    while changed:
        changed = False
        for place, box in enumerate(boxes):
            for line in around:
                if _touches(box, line.box, NEAR * heights[place]):
                    boxes[place] = box = union((box, line.box))
                    around = [other for other in around if other is not line]
                    changed = True
            for bar in bars:
                if _touches(box, bar, NEAR * heights[place]):
                    boxes[place] = box = union((box, bar))
                    bars = [other for other in bars if other is not bar]
                    changed = True
    return _merged(boxes, max(heights, default=0.0) * NEAR)


def _is_core(line: Line, body: Sequence[Block], numbers: Sequence[Line]) -> bool:
    text = line.text
    if len(WORD.findall(text)) > MOST_WORDS or len(text) < 3:
        return False
    if all(CODE_FONT.search(letter.font) for letter in line.letters):
        return False
    mathematics = sum(bool(MATH_FONT.search(letter.font)) or letter.text in SIGNS for letter in line.letters)
    if not RELATIONS & set(text) and mathematics < 0.5 * len(line.letters):
        return False
    numbered = any(overlap(line.box[1], line.box[3], number.box[1], number.box[3]) > 0 and number.box[0] > line.box[2]
                   for number in numbers)  # fmt: skip
    if numbered:
        return True
    columns = [block.box for block in body if overlap(block.box[0], block.box[2], line.box[0], line.box[2]) > 0]
    if not columns:
        return False
    near = min(columns, key=lambda box: max(box[1] - line.box[3], line.box[1] - box[3]))
    left, right = near[0], near[2]
    centred = abs((left + right) / 2 - (line.box[0] + line.box[2]) / 2) < 0.1 * (right - left)
    return line.box[0] - left > INDENT * line.size and (centred or line.box[2] < right)


def _touches(box: Box, other: Box, near: float) -> bool:
    across = overlap(box[0], box[2], other[0], other[2])
    return across > -near and -overlap(box[1], box[3], other[1], other[3]) < near


def _merged(boxes: Sequence[Box], near: float) -> list[Box]:
    """Boxes beside or above each other, such as a fraction and what it is equal to, as one."""
    found: list[Box] = []
    for box in sorted(boxes, key=lambda box: box[1]):
        homes = [other for other in found if _touches(other, box, near)]
        found = [other for other in found if other not in homes]
        found.append(union([box, *homes]))
    return found
