"""Letters of a page as lines, and lines as blocks: paragraphs, headings, captions, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.layout.boxes import overlap, union
from trainer.corpora.captions.layout.page import Letter

# In units of the size of the letters.
SPACE = 0.16  # between letters of two words
WORD, COLUMN = 1.0, 1.6  # between words of one line, at most: of two pieces of the file, of one piece
OTHER_SIZE = 0.4  # between two pieces in different sizes, such as a letter and its index
LEADING = 0.75  # white between two lines of a paragraph, at most
SAME_SIZE = 0.06  # relative difference of sizes that rounding can give
HYPHENS = ("-", "\u00ad", "\u2010", "\ufffe")


@dataclass
class Line:
    """Words on one height, or one vertical text."""

    letters: list[Letter]
    upright: bool

    @cached_property
    def box(self) -> Box:
        return union(letter.box for letter in self.letters)

    def add(self, other: Line) -> None:
        """Put the letters of another line after these."""
        box = union((self.box, other.box))
        self.letters.extend(other.letters)
        self.__dict__.pop("text", None)
        self.__dict__.pop("size", None)
        self.__dict__["box"] = box

    @cached_property
    def size(self) -> float:
        """The size of most of its letters, in points."""
        first = self.letters[0].size
        if all(letter.size == first for letter in self.letters):
            return round(first, 1)
        sizes = Counter(round(letter.size, 1) for letter in self.letters)
        return max(sizes, key=lambda size: (sizes[size], size))

    @cached_property
    def text(self) -> str:
        words, before = [self.letters[0].text], self.letters[0]
        for letter in self.letters[1:]:
            if letter.spaced or _gap(before, letter) > SPACE * max(before.size, letter.size):
                words.append(" ")
            words.append(letter.text)
            before = letter
        return "".join(words)


@dataclass
class Block:
    """Lines that belong together, from top to bottom."""

    lines: list[Line] = field(default_factory=list)

    @cached_property
    def box(self) -> Box:
        return union(line.box for line in self.lines)

    @property
    def size(self) -> float:
        return self.lines[0].size

    @cached_property
    def text(self) -> str:
        """Lines joined by spaces, words that a hyphen breaks in one piece."""
        found = ""
        for line in self.lines:
            text = line.text.strip()
            if found.endswith(HYPHENS) and text[:1].islower():
                found = found[:-1] + text
            else:
                found = f"{found} {text}" if found else text
        return " ".join(found.replace("\ufffe", "-").split())


def lines_of(letters: Sequence[Letter]) -> list[Line]:
    """Lines from top to bottom, those on one height from left to right."""
    runs = list(_runs(letters))
    level = [Line(run, True) for run in runs if run[0].upright]
    found = _joined(level) + [Line(run, False) for run in runs if not run[0].upright]
    return sorted(found, key=lambda line: (line.box[1], line.box[0]))


def _runs(letters: Sequence[Letter]) -> Iterator[list[Letter]]:
    """Letters that follow each other in the file and on the page."""
    run: list[Letter] = []
    for letter in letters:
        if run and not _follows(run[-1], letter):
            yield run
            run = []
        run.append(letter)
    if run:
        yield run


def _follows(before: Letter, after: Letter) -> bool:
    if before.upright != after.upright:
        return False
    size = max(before.size, after.size)
    if before.upright:
        if before.box[1] == after.box[1]:  # as most letters are
            return -size < after.box[0] - before.box[2] < COLUMN * size
        return _level(before.box, after.box) and -size < _gap(before, after) < COLUMN * size
    beside = overlap(before.box[0], before.box[2], after.box[0], after.box[2]) > 0.5 * min(
        before.box[2] - before.box[0], after.box[2] - after.box[0]
    )
    return beside and _gap(before, after) < COLUMN * size


def _gap(before: Letter, after: Letter) -> float:
    if before.upright:
        return after.box[0] - before.box[2]
    return max(after.box[1] - before.box[3], before.box[1] - after.box[3])


def _level(one: Box, other: Box) -> bool:
    """Return True if two boxes are on one line; indices are on the line of what they are attached to."""
    least = min(one[3] - one[1], other[3] - other[1])
    return overlap(one[1], one[3], other[1], other[3]) > 0.45 * least


def _joined(pieces: list[Line]) -> list[Line]:
    """Pieces of one line that the file has at several places, such as words set one by one, as one."""
    pieces = sorted(pieces, key=lambda line: (line.box[0], line.box[1]))
    found: list[Line] = []
    by_height: dict[int, list[Line]] = {}
    for piece in pieces:
        x0, y0, _, y1 = piece.box
        rows = range(int(y0) // 8, int(y1) // 8 + 1)
        candidates = {id(line): line for row in rows for line in by_height.get(row, ())}
        best = None
        for line in candidates.values():
            gap = x0 - line.box[2]
            size = max(line.size, piece.size)
            alike = abs(line.size - piece.size) <= SAME_SIZE * size
            near_enough = -0.5 * size < gap < (WORD if alike else OTHER_SIZE) * size and _level(line.box, piece.box)
            if near_enough and (best is None or line.box[2] > best.box[2]):
                best = line
        if best is None:
            best = piece
            found.append(best)
        else:
            best.add(piece)
        for row in rows:
            if not any(line is best for line in by_height.setdefault(row, [])):
                by_height[row].append(best)
    return found


def blocks_of(lines: Sequence[Line]) -> list[Block]:
    """Blocks from top to bottom. Only level lines make blocks of several."""
    found: list[Block] = []
    open_blocks: list[Block] = []
    for line in lines:
        if not line.upright:
            found.append(Block([line]))
            continue
        open_blocks = [block for block in open_blocks if line.box[1] - block.lines[-1].box[3] < 3 * line.size]
        home = next((block for block in open_blocks if _continues(block, line)), None)
        if home is None:
            home = Block()
            found.append(home)
            open_blocks.append(home)
        home.lines.append(line)
        home.__dict__.pop("box", None)
    return found


def _continues(block: Block, line: Line) -> bool:
    last = block.lines[-1]
    if abs(last.size - line.size) > SAME_SIZE * max(last.size, line.size):
        return False
    white = line.box[1] - last.box[3]
    if not -0.5 * line.size < white < LEADING * line.size:
        return False
    if len(block.lines) > 1:
        pitch = last.box[1] - block.lines[-2].box[1]
        if line.box[1] - last.box[1] > 1.3 * pitch:
            return False
    width = min(last.box[2] - last.box[0], line.box[2] - line.box[0])
    return overlap(last.box[0], last.box[2], line.box[0], line.box[2]) > 0.5 * width
