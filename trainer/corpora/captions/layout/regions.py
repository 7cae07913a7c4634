"""The regions of a page. Figures: clusters of what is drawn, the labels in and around them, and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.corpora.captions.crops import Box, Kind
from trainer.corpora.captions.layout.boxes import area, clusters, distance, inside, overlap, shared, union
from trainer.corpora.captions.layout.formulas import formulas_of
from trainer.corpora.captions.layout.grids import tables_of
from trainer.corpora.captions.layout.labels import Caption, body_size, captions_of
from trainer.corpora.captions.layout.page import Mark, PageContent
from trainer.corpora.captions.layout.text import SAME_SIZE, Block, Line, blocks_of, lines_of

TOUCHING = 5.0  # points between marks of one cluster
BESIDE = 12.0  # points between a cluster and a label of it, such as the numbers at an axis
TOGETHER = 45.0  # points between the panels of a figure above or beside each other over its caption, at most
IN_ROW = 24.0  # points between panels beside each other, whose caption may be under the first alone
REACH = 60.0  # points between a figure and its caption
SMALL = 24.0  # points: the shorter side of a figure is at least as long
PHOTO = 0.9  # of its area: what one image fills of a figure of pixels
RULE = 2.5  # points: thickness of a rule
NEAR_RULE = 40.0  # points between two rules of a table, such as those around its head
FRAME = 0.12  # of the height of a page: where the rules of running heads and feet are


@dataclass
class Region:
    """A part of a page that becomes a crop."""

    kind: Kind
    box: Box
    caption: Caption | None = None
    texts: list[Block] = field(default_factory=list)
    photo: bool = False  # one image of pixels fills it, so that PNG would be slow and large


@dataclass
class Layout:
    """The findings of a page. body: the paragraphs, in reading order. small: clusters that are too small."""

    regions: list[Region]
    captions: list[Caption]  # that belong to no region
    body: list[Block]
    small: int


def layout_of(page: PageContent) -> Layout:
    """The regions of one page."""
    lines = lines_of(page.letters)
    blocks = blocks_of(lines)
    size = body_size(blocks)
    captions = captions_of(blocks, size)
    marks = [mark for mark in page.marks if not mark.back]
    rules = [mark.box for mark in marks if mark.thin and mark.box[2] - mark.box[0] > 0.5 * page.size[0]]
    marks = [mark for mark in marks if not (mark.thin and _of_frame(mark.box, page.size, rules))]
    paragraphs = [block for block in blocks if len(block.lines) > 1 and _is_body(block, size)]
    columns = [block.box for block in paragraphs if not any(block is caption.block for caption in captions)]
    tables = tables_of(marks, lines, captions, columns, page.size)
    boxes = [table.box for table in tables]
    of_captions = {id(caption.block) for caption in captions}
    others = [block for block in blocks if id(block) not in of_captions and not _is_within(block.box, boxes)]
    body = [block for block in others if _is_body(block, size)]
    of_body = {id(block) for block in body}
    loose = [block for block in others if id(block) not in of_body]
    of_tables = {id(table.caption) for table in tables}
    free = [caption for caption in captions if id(caption) not in of_tables]
    solid = [caption.block for caption in captions] + body
    shapes = _clusters([mark for mark in marks if not _is_within(mark.box, boxes)], page.size, loose, solid)
    figures, small = _figures(shapes, free, solid, loose)
    of_figures = {id(region.caption) for region in figures}
    of_captions = {id(line) for caption in captions for line in caption.block.lines}
    rest = [line for line in lines if id(line) not in of_captions]
    formulas = formulas_of(rest, marks, body, [*boxes, *(region.box for region in figures)])
    pictures = [mark.box for mark in marks if mark.kind == "image"]
    for figure in figures:
        figure.photo = any(shared(figure.box, picture) > PHOTO * area(figure.box) for picture in pictures)
    regions = [
        *figures,
        *(Region("table", table.box, table.caption, _texts(lines, table.box)) for table in tables),
        *(Region("formula", box, None, _texts(lines, box)) for box in formulas),
    ]
    return Layout(
        sorted(regions, key=lambda region: (region.box[1], region.box[0])),
        [caption for caption in free if id(caption) not in of_figures],
        _reading_order(body, page.size),
        small,
    )


def _is_within(box: Box, others: Sequence[Box]) -> bool:
    """Return True for a box that is in one of the others for the most part; one without area counts by its middle."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return any(inside((x, y, x, y), other, 1.0) and shared(box, other) >= 0.6 * area(box) for other in others)


def _texts(lines: Sequence[Line], box: Box) -> list[Block]:
    return [Block([line]) for line in lines if _is_within(line.box, [box])]


def _is_body(block: Block, size: float) -> bool:
    """Return True for a paragraph or heading: wide for its letters, set level, in the size of the body or larger."""
    if not block.lines[0].upright:
        return False
    width = max(line.box[2] - line.box[0] for line in block.lines)
    letters = sum(len(line.letters) for line in block.lines)
    if len(block.lines) >= 2 and letters >= 30 and width > 14 * block.size:
        return True
    if block.size < size * (1 - SAME_SIZE):
        return False
    return letters >= 20 and width > 14 * block.size


@dataclass
class _Shape:
    """A cluster of marks with its labels."""

    box: Box
    marks: list[Mark]
    texts: list[Block]

    def add(self, other: _Shape) -> None:
        self.box = union((self.box, other.box))
        self.marks += other.marks
        self.texts += other.texts

    @property
    def only_rules(self) -> bool:
        return all(mark.thin for mark in self.marks)


def _clusters(
    marks: Sequence[Mark], size: tuple[float, float], loose: Sequence[Block], solid: Sequence[Block]
) -> list[_Shape]:
    """Clusters of marks with the texts beside them. size: of the page."""
    groups = clusters([mark.box for mark in marks], size, TOUCHING)
    shapes = []
    for group in groups:
        some = [marks[place] for place in group]
        shapes.append(_Shape(union(mark.box for mark in some), some, []))
    free = list(loose)
    changed = True
    while changed:
        shapes = _merged(shapes)
        changed = False
        for shape in shapes:
            if _is_rule(shape):
                continue
            near = [block for block in free if distance(shape.box, block.box) <= BESIDE and _beside(shape, block)]
            for block in near:
                grown = union((shape.box, block.box))
                if any(shared(grown, other.box) > 0.2 * area(other.box) for other in solid
                       if not shared(shape.box, other.box)):  # fmt: skip
                    continue
                shape.box, changed = grown, True
                shape.texts.append(block)
                free = [other for other in free if other is not block]
    return shapes


def _of_frame(rule: Box, size: tuple[float, float], rules: Sequence[Box]) -> bool:
    """Return True for a rule across the page under its head or over its foot. One of `rules` that is near and as long
    makes it a rule of a table."""
    x0, y0, x1, y1 = rule
    if x1 - x0 <= 0.5 * size[0] or (FRAME * size[1] <= y1 and y0 <= (1 - FRAME) * size[1]):
        return False
    alike = [other for other in rules if abs(other[0] - x0) < 2 and abs(other[2] - x1) < 2]
    return not any(2 < abs(other[1] - y0) < NEAR_RULE for other in alike)


def _is_rule(shape: _Shape) -> bool:
    return min(shape.box[2] - shape.box[0], shape.box[3] - shape.box[1]) < RULE and not shape.texts


def _beside(shape: _Shape, block: Block) -> bool:
    """Return True if a text's middle is within the cluster's width or height, as that of a label is."""
    x, y = (block.box[0] + block.box[2]) / 2, (block.box[1] + block.box[3]) / 2
    x0, y0, x1, y1 = shape.box
    return x0 - BESIDE <= x <= x1 + BESIDE or y0 - BESIDE <= y <= y1 + BESIDE


def _merged(shapes: list[_Shape]) -> list[_Shape]:
    """Shapes whose boxes overlap as one."""
    changed = True
    while changed:
        changed = False
        found: list[_Shape] = []
        for shape in sorted(shapes, key=lambda shape: -area(shape.box)):
            home = next((other for other in found if _overlap(other.box, shape.box)), None)
            if home is None:
                found.append(shape)
            else:
                home.add(shape)
                changed = True
        shapes = found
    return shapes


def _overlap(one: Box, other: Box) -> bool:
    return overlap(one[0], one[2], other[0], other[2]) > 0 and overlap(one[1], one[3], other[1], other[3]) > 0


def _figures(
    shapes: list[_Shape], captions: Sequence[Caption], solid: Sequence[Block], loose: Sequence[Block]
) -> tuple[list[Region], int]:
    """Figures, and how many clusters are too small for one. captions: those without a table. loose: other texts."""
    shapes = [shape for shape in shapes if not _is_rule(shape)]
    owner: dict[int, Caption] = {}
    of_figures = [caption for caption in captions if caption.kind == "figure"]
    for caption in of_figures:
        others = [other for other in of_figures if other is not caption]
        for shape in _panels(shapes, caption, others, solid, owner):
            owner[id(shape)] = caption
    regions, small = [], 0
    for caption in of_figures:
        mine = [shape for shape in shapes if owner.get(id(shape)) is caption]
        if mine:
            box, texts = union(shape.box for shape in mine), [block for shape in mine for block in shape.texts]
            between = [block for block in loose if _is_between(block.box, box, caption.box)]
            texts += [block for block in between if not any(block is other for other in texts)]
            regions.append(Region("figure", union([box, *(block.box for block in between)]), caption, texts))
    for shape in shapes:
        if id(shape) in owner or shape.only_rules or any(inside(shape.box, region.box, 3.0) for region in regions):
            continue
        if not _is_large(shape.box):
            small += 1
            continue
        regions.append(Region("figure", shape.box, None, shape.texts))
    return regions, small


def _is_between(text: Box, box: Box, caption: Box) -> bool:
    """Return True for a text that is between a figure and its caption, such as the name of an axis."""
    if not min(box[0], caption[0]) <= text[0] <= text[2] <= max(box[2], caption[2]):
        return False
    if caption[1] >= box[3]:
        return box[3] - 2 <= text[1] and text[3] <= caption[1] + 2
    return caption[3] - 2 <= text[1] and text[3] <= box[1] + 2


def _panels(
    shapes: Sequence[_Shape],
    caption: Caption,
    others: Sequence[Caption],
    solid: Sequence[Block],
    owner: dict[int, Caption],
) -> list[_Shape]:
    """The clusters that a caption is for: the nearest, on the side where it is nearest, and what is close to that."""
    free = [shape for shape in shapes if id(shape) not in owner and _gap(caption.box, shape.box) < REACH
            and _is_large(shape.box) and _clear(caption, shape.box, solid)]  # fmt: skip
    if not free:
        return []
    first = min(free, key=lambda shape: (_gap(caption.box, shape.box), -area(shape.box)))
    found, above = [first], first.box[1] < caption.box[1]
    reach = union((first.box, caption.box))
    changed = True
    while changed:
        changed = False
        box = union(shape.box for shape in found)
        for shape in shapes:
            if id(shape) in owner or any(shape is other for other in found):
                continue
            reaches = TOGETHER if _is_large(shape.box) else BESIDE
            if (shape.box[1] < caption.box[1]) != above or distance(box, shape.box) > reaches:
                continue
            middle = (shape.box[0] + shape.box[2]) / 2
            if not reach[0] - 4 <= middle <= reach[2] + 4 and not _in_row(box, shape, others, solid):
                continue
            both = union((box, shape.box))
            if any(shared(both, block.box) > 0.2 * area(block.box) for block in solid):
                continue
            found.append(shape)
            changed = True
            break
    return found


def _in_row(box: Box, shape: _Shape, others: Sequence[Caption], solid: Sequence[Block]) -> bool:
    """Return True for a panel right beside others, on their height, that another caption is not for."""
    least = min(box[3] - box[1], shape.box[3] - shape.box[1])
    if overlap(box[1], box[3], shape.box[1], shape.box[3]) < 0.6 * least or distance(box, shape.box) > IN_ROW:
        return False
    return not any(_gap(other.box, shape.box) < REACH and _clear(other, shape.box, solid) for other in others)


def _gap(caption: Box, box: Box) -> float:
    """Vertical distance of a box that is above or below a caption; infinite for one that is beside it."""
    if overlap(caption[0], caption[2], box[0], box[2]) <= 0:
        return float("inf")
    return max(-overlap(caption[1], caption[3], box[1], box[3]), 0.0)


def _clear(caption: Caption, box: Box, solid: Sequence[Block]) -> bool:
    """Return True if no paragraph or other caption is between a caption and a box."""
    top, bottom = min(caption.box[3], box[3]), max(caption.box[1], box[1])
    left, right = max(caption.box[0], box[0]), min(caption.box[2], box[2])
    return not any(
        other is not caption.block
        and overlap(top, bottom, other.box[1], other.box[3]) > 1.0
        and overlap(left, right, other.box[0], other.box[2]) > 1.0
        for other in solid
    )


def _is_large(box: Box) -> bool:
    return min(box[2] - box[0], box[3] - box[1]) >= SMALL


def _reading_order(blocks: Sequence[Block], size: tuple[float, float]) -> list[Block]:
    """Column by column, from the left, where blocks leave the middle of the page free; else from top to bottom."""
    return sorted(blocks, key=lambda block: (int(block.box[0] / (size[0] / 6)), block.box[1]))
