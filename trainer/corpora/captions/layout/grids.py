"""Tables: grids of rules, rows between rules of one width, and rows of cells under a table's caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.layout.boxes import area, clusters, inside, overlap, shared, union
from trainer.corpora.captions.layout.labels import Caption
from trainer.corpora.captions.layout.page import Mark
from trainer.corpora.captions.layout.text import Line

SAME = 4.0  # points by which the ends of rules of one table differ
SHORTEST = 40.0  # points: a rule of a table
TALLEST_GAP = 0.5  # of the page: between two rules of one table
ROWS = 2  # of text that a table has, at least
REACH = 40.0  # points between a caption and its table
LEADING = 1.6  # white between the rows of a table without rules, in units of the letters' size


@dataclass
class Table:
    """box: of its rules and its text. ruled: rules show where it is."""

    box: Box
    caption: Caption | None
    ruled: bool


def tables_of(
    marks: Sequence[Mark],
    lines: Sequence[Line],
    captions: Sequence[Caption],
    paragraphs: Sequence[Box],
    size: tuple[float, float],
) -> list[Table]:
    """The tables of a page.

    marks: without the rules of its frame. lines: all its text. paragraphs: of the body, several lines each. size: of
    the page.
    """
    of_captions = {id(line) for caption in captions for line in caption.block.lines}
    texts = [line for line in lines if line.upright and id(line) not in of_captions]
    boxes = [caption.box for caption in captions]
    found = [box for box in _ruled(marks, size, boxes) if _rows(_within(texts, box)) >= ROWS]
    found = [box for box in found if not any(other is not box and inside(box, other, 1.0) for other in found)]
    named = [caption for caption in captions if caption.kind == "table"]
    tables = []
    free = list(found)
    for caption in named:
        near = [box for box in free if _gap(caption.box, box) < REACH]
        if near:
            box = min(near, key=lambda box: _gap(caption.box, box))
            free = [other for other in free if other is not box]
            tables.append(Table(box, caption, True))
    owned = [table.box for table in tables]
    for caption in named:
        if not any(table.caption is caption for table in tables):
            column = _column(caption.box, paragraphs, size)
            taken = [*owned, *paragraphs, *(mark.box for mark in marks if mark.kind == "image")]
            cells = [line for line in texts if column[0] <= line.box[0] and line.box[2] <= column[1]
                     and not any(shared(line.box, other) for other in taken)]  # fmt: skip
            if (unruled := _beside(caption, cells)) is not None:
                tables.append(Table(unruled, caption, False))
                owned.append(unruled)
    figures = [caption for caption in captions if caption.kind == "figure"]
    for box in free:  # a grid without a caption; a drawing of rules over a figure's caption is a figure
        if not any(_gap(caption.box, box) < REACH for caption in figures):
            tables.append(Table(box, None, True))
    return tables


def _ruled(marks: Sequence[Mark], size: tuple[float, float], captions: Sequence[Box]) -> list[Box]:
    """Boxes of grids, and of rules that start and end at the same places with nothing but rows between them."""
    thin = [mark.box for mark in marks if mark.thin]
    groups = clusters(thin, size, 2.0)
    wide: list[Box] = []
    found: list[Box] = []
    for group in groups:
        box = union(thin[place] for place in group)
        upright = sum(thin[place][3] - thin[place][1] > 6.0 for place in group)
        if box[2] - box[0] < SHORTEST:
            continue
        if box[3] - box[1] < 2.5:
            wide.append(box)
        elif upright >= 2 or len(group) > 3:
            found.append(box)
    solid = [mark.box for mark in marks if not mark.thin]
    for rule in sorted(wide, key=lambda box: (box[1], box[0])):
        home = next((place for place, box in enumerate(found) if _continues(box, rule, size, captions, solid)), None)
        if home is None:
            found.append(rule)
        else:
            found[home] = union((found[home], rule))
    return [box for box in found if box[3] - box[1] > 12.0]


def _continues(box: Box, rule: Box, size: tuple[float, float], captions: Sequence[Box], solid: Sequence[Box]) -> bool:
    if abs(box[0] - rule[0]) > SAME or abs(box[2] - rule[2]) > SAME or rule[1] < box[3]:
        return False
    between = (rule[0], box[3], rule[2], rule[1])
    if between[3] - between[1] > TALLEST_GAP * size[1]:
        return False
    return not any(shared(between, other) > 0.3 * area(other) for other in (*captions, *solid))


def _within(texts: Sequence[Line], box: Box) -> list[Line]:
    return [line for line in texts if shared(line.box, box) > 0.6 * area(line.box)]


def _rows(lines: Sequence[Line]) -> int:
    """The number of heights that lines are on."""
    count, bottom = 0, -1.0
    for line in sorted(lines, key=lambda line: line.box[1]):
        middle = (line.box[1] + line.box[3]) / 2
        if middle > bottom:
            count, bottom = count + 1, line.box[3]
    return count


def _gap(caption: Box, box: Box) -> float:
    if overlap(caption[0], caption[2], box[0], box[2]) <= 0:
        return float("inf")
    return max(-overlap(caption[1], caption[3], box[1], box[3]), 0.0)


def _column(caption: Box, paragraphs: Sequence[Box], size: tuple[float, float]) -> tuple[float, float]:
    """Left and right ends of the column that a caption is in the middle of; of the page without one."""
    middle = (caption[0] + caption[2]) / 2
    around = [box for box in paragraphs if box[0] < middle < box[2] and box[0] - SAME < caption[0]
              and caption[2] < box[2] + SAME]  # fmt: skip
    if not around:
        return 0.0, size[0]
    x0, _, x1, _ = union(around)
    return x0 - SAME, x1 + SAME


def _beside(caption: Caption, cells: Sequence[Line]) -> Box | None:
    """The rows of two cells or more that follow a caption, or else those that end above it."""
    rows: list[list[Line]] = []
    for cell in sorted(cells, key=lambda cell: cell.box[1] + cell.box[3]):
        last = rows[-1][0].box if rows else None
        least = 0.5 * (cell.box[3] - cell.box[1])
        if last is not None and overlap(last[1], last[3], cell.box[1], cell.box[3]) > least:
            rows[-1].append(cell)
        else:
            rows.append([cell])
    for down in (True, False):
        found = _rows_from(caption, rows if down else rows[::-1], down)
        if len(found) >= ROWS and sum(len(row) > 1 for row in found) >= max(ROWS, 0.7 * len(found)):
            return union(cell.box for row in found for cell in row)
    return None


def _rows_from(caption: Caption, rows: Sequence[list[Line]], down: bool) -> list[list[Line]]:
    """Rows that follow each other from a caption on; the last has two cells or more."""
    _, top, _, bottom = caption.box
    size = caption.block.size
    found: list[list[Line]] = []
    edge = bottom if down else top
    for row in rows:
        _, y0, _, y1 = union(cell.box for cell in row)
        ahead = y0 - edge if down else edge - y1
        if ahead < -0.6 * size:
            continue
        if ahead > (3.0 if not found else LEADING) * size:
            break
        found.append(row)
        edge = y1 if down else y0
    while found and len(found[-1]) < 2:
        found.pop()
    return found
