"""Made papers with known truth: PDFs by reportlab, with plots by matplotlib placed in them as LaTeX places a PDF.

`write_papers` is seeded. The looks of `TUNED` were looked at while the layout was written, those of `HELD_OUT` were
not: they differ in fonts, columns, labels and the library that draws the plots.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import matplotlib
import numpy as np
import pypdfium2
from reportlab.graphics import renderPDF
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from tests.trainer.corpora.captions import plots
from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.layout.boxes import union

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
WORDS = [
    *("the", "sample", "was", "measured", "with", "spectrometer", "at", "low", "temperature", "and", "its", "signal"),
    *("follows", "from", "model", "that", "fit", "to", "data", "of", "each", "run", "where", "noise", "is", "small"),
    *(
        "compared",
        "peak",
        "width",
        "while",
        "background",
        "grows",
        "linearly",
        "in",
        "time",
        "under",
        "constant",
        "load",
    ),
    *("crystals", "were", "grown", "vacuum", "by", "slow", "cooling", "until", "phase", "boundary", "moved", "toward"),
    *("surface", "both", "methods", "agree", "within", "error", "we", "a"),
]


@dataclass(frozen=True)
class Truth:
    """One region of a paper. box: from the top left of the shown page, in points."""

    page: int
    kind: str
    box: Box
    label: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Look:
    """The typography of a paper."""

    name: str
    body: str = "Times-Roman"
    bold: str = "Times-Bold"
    math: str = "Times-Italic"
    size: float = 10.0
    caption_size: float = 9.0
    columns: int = 2
    gutter: float = 18.0
    page: tuple[float, float] = (595.0, 842.0)
    margin: float = 54.0
    figure: str = "Figure {}: "
    table: str = "Table {}: "
    bold_label: bool = False
    library: str = "matplotlib"
    plot_font: str = "DejaVu Sans"
    above: bool = False  # captions of figures are above them
    logo: bool = False
    turned: int = 0  # /Rotate of every second page
    cropped: bool = False
    table_style: str = "ruled"


TUNED = (
    Look("times-2", logo=True),
    Look("cm-1", body="cmr10", bold="cmb10", math="cmmi10", columns=1, margin=96.0, table_style="booktabs", turned=90),
    Look("times-2-bold", figure="Fig. {}. ", table="TABLE {}. ", bold_label=True, caption_size=8.0, turned=270,
         table_style="booktabs"),
    Look("cm-2", body="cmr10", bold="cmb10", math="cmmi10", figure="FIG. {}. ", cropped=True, page=(612.0, 792.0),
         table_style="unruled"),
    Look("german", body="Helvetica", bold="Helvetica-Bold", math="Helvetica-Oblique", columns=1, margin=80.0, size=9.5,
         figure="Abbildung {}: ", table="Tabelle {}: ", above=True, caption_size=8.5),
    Look("dejavu-2", body="DejaVuSerif", bold="DejaVuSerif-Bold", math="DejaVuSerif-Italic", size=8.5, caption_size=7.5,
         library="reportlab", figure="Fig. {} | ", bold_label=True, gutter=24.0, turned=90, table_style="booktabs"),
    Look("stix-1", body="STIXGeneral", bold="STIXGeneralBol", math="STIXGeneralItalic", columns=1, margin=110.0,
         size=11.0, caption_size=9.5, library="reportlab", figure="Figura {}. ", table="Tabla {}. ", cropped=True,
         table_style="unruled"),
    Look("sans-3", body="DejaVuSans", bold="DejaVuSans-Bold", math="DejaVuSans-Oblique", size=7.5, caption_size=6.8,
         columns=3, gutter=14.0, margin=40.0, page=(612.0, 792.0), library="reportlab", figure="Figure S{}. ",
         table="Table S{}. ", logo=True, bold_label=True),
    Look("french-2", body="STIXGeneral", bold="STIXGeneralBol", math="STIXGeneralItalic", plot_font="STIXGeneral",
         figure="Fig. {} – ", table="Tableau {} – ", size=9.0, caption_size=8.0, margin=60.0, turned=180,
         table_style="booktabs"),
    Look("chinese", body="STSong-Light", bold="STSong-Light", math="Times-Italic", columns=1, margin=90.0,
         figure="图 {} ", table="表 {} ", library="reportlab", size=10.5, caption_size=9.0, table_style="unruled"),
)  # fmt: skip
HELD_OUT = (
    Look("mono-2", body="DejaVuSansMono", bold="DejaVuSansMono-Bold", math="DejaVuSans-Oblique", size=6.8,
         caption_size=6.2, library="cairo", plot_font="DejaVu Sans Mono", figure="Fig. {}: ", turned=270, margin=48.0),
    Look("russian-1", body="DejaVuSans", bold="DejaVuSans-Bold", math="DejaVuSans-Oblique", columns=1, margin=70.0,
         size=9.0, caption_size=8.0, library="cairo", figure="Рис. {}. ", table="Таблица {}. ", table_style="booktabs"),
    Look("serif-3", body="DejaVuSerif", bold="DejaVuSerif-Bold", math="DejaVuSerif-Italic", size=7.0, caption_size=6.4,
         columns=3, gutter=16.0, margin=44.0, page=(620.0, 877.0), library="cairo", figure="Scheme {}. ",
         plot_font="DejaVu Serif", table="Tab. {}: ", cropped=True, logo=True, table_style="unruled"),
    Look("cmss-2", body="cmss10", bold="cmb10", math="cmmi10", size=10.5, caption_size=9.5, gutter=30.0, margin=42.0,
         library="cairo", figure="Supplementary Figure {} | ", bold_label=True, plot_font="STIXGeneral", turned=90,
         table_style="booktabs"),
    Look("letter", body="STIXGeneral", bold="STIXGeneralBol", math="STIXGeneralItalic", columns=1, margin=100.0,
         page=(500.0, 700.0), library="cairo", figure="Figure {}. ", above=True, size=9.0, caption_size=7.8,
         table_style="unruled"),
)  # fmt: skip


@dataclass
class Paper:
    """name: of its file. truth: every region that a perfect reader finds."""

    name: str
    path: Path
    look: Look
    truth: list[Truth] = field(default_factory=list)


@dataclass
class _Place:
    """A PDF to be laid on a page. box: where, in the space of the shown page, from the bottom left."""

    page: int
    data: bytes
    x: float
    y: float


def register_fonts() -> None:
    for path in FONTS.glob("*.ttf"):
        if path.stem not in pdfmetrics.getRegisteredFontNames() and not path.stem.startswith("LastResort"):
            pdfmetrics.registerFont(TTFont(path.stem, str(path)))
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))


class Writer:
    """Sets one paper, column by column. y is the distance from the top of the shown page."""

    def __init__(self, look: Look, seed: int, folder: Path, pages: int) -> None:
        self.look, self.folder, self.pages = look, folder, pages
        self.rng = np.random.default_rng(seed)
        self.truth: list[Truth] = []
        self.places: list[_Place] = []
        self.counts = {"figure": 0, "table": 0, "formula": 0}
        self.buffer = io.BytesIO()
        self.canvas = Canvas(self.buffer, pageCompression=1, invariant=1)
        self.page, self.column = 0, 0
        self.width = (look.page[0] - 2 * look.margin - (look.columns - 1) * look.gutter) / look.columns
        self.logo = plots.pixels(np.random.default_rng(5), 60, 40, False)
        self.new_page()

    # the page

    @property
    def left(self) -> float:
        return self.look.margin + self.column * (self.width + self.look.gutter)

    @property
    def bottom(self) -> float:
        return self.look.page[1] - self.look.margin

    def turn(self, page: int) -> int:
        return self.look.turned if page % 2 == 0 else 0

    def new_page(self) -> None:
        if self.page:
            self.canvas.showPage()
        self.page, self.column, self.y = self.page + 1, 0, self.look.margin
        if self.page > self.pages:
            return
        w, h = self.look.page
        turn = self.turn(self.page)
        extra = 20.0 if self.look.cropped else 0.0
        sides = (h, w) if turn in (90, 270) else (w, h)
        self.canvas.setPageSize((sides[0] + 2 * extra, sides[1] + 2 * extra))
        self.canvas.transform(*self.matrix(self.page))
        self.canvas.setFont(self.look.body, 7)
        self.canvas.drawCentredString(w / 2, 24, str(self.page))
        self.canvas.drawString(self.look.margin, h - 30, "Journal of Made Papers, vol. 12")
        self.canvas.setLineWidth(0.4)
        self.canvas.line(self.look.margin, h - 36, w - self.look.margin, h - 36)
        if self.look.logo:
            self.canvas.drawInlineImage(self.logo, w - self.look.margin - 30, h - 34, 30, 20)

    def matrix(self, page: int) -> tuple[float, ...]:
        """From the shown page, y up, to the page's own space."""
        w, h = self.look.page
        extra = 20.0 if self.look.cropped else 0.0
        a, b, c, d, e, f = {0: (1, 0, 0, 1, 0, 0), 90: (0, 1, -1, 0, h, 0), 180: (-1, 0, 0, -1, w, h),
                            270: (0, -1, 1, 0, 0, w)}[self.turn(page)]  # fmt: skip
        return a, b, c, d, e + extra, f + extra

    def room(self, height: float) -> bool:
        """Make room in this column or the next. Return False once all pages are full."""
        if self.y + height > self.bottom:
            self.column, self.y = self.column + 1, self.look.margin
            if self.column == self.look.columns:
                self.new_page()
        return self.page <= self.pages

    def up(self, y: float) -> float:
        return self.look.page[1] - y

    # text

    def words(self, count: int) -> list[str]:
        return [WORDS[int(index)] for index in self.rng.integers(len(WORDS), size=count)]

    def wrap(self, words: list[str], font: str, size: float, width: float, first: str = "") -> list[list[str]]:
        lines: list[list[str]] = [[first] if first else []]
        for word in words:
            line = [*lines[-1], word]
            if pdfmetrics.stringWidth(" ".join(line), font, size) > width and lines[-1]:
                lines.append([word])
            else:
                lines[-1] = line
        return lines

    def text_lines(self, lines: list[list[str]], font: str, size: float, justify: bool, centre: bool = False,
                   label: str = "") -> bool:  # fmt: skip
        for number, line in enumerate(lines):
            if not self.room(size * 1.2):
                return False
            self.y += size * 1.2
            text, x, spacing = " ".join(line), self.left, 0.0
            width = pdfmetrics.stringWidth(text, font, size)
            if justify and number < len(lines) - 1 and len(line) > 1:
                spacing = (self.width - width) / (len(line) - 1)
            if centre:
                x += (self.width - width) / 2
            base = self.up(self.y - 0.25 * size)
            if number == 0 and label:
                self.canvas.setFont(self.look.bold, size)
                self.canvas.drawString(x, base, label)
                x += pdfmetrics.stringWidth(label, self.look.bold, size)
                text = text[len(label) :]
            self.canvas.setFont(font, size)
            if font == "STSong-Light":  # Chinese has no spaces to stretch
                self.canvas.drawString(x, base, text)
                continue
            piece = self.canvas.beginText(x, base)
            piece.setFont(font, size)
            if isinstance(pdfmetrics.getFont(font), TTFont):  # several fonts in the file: spaces set one by one
                for word in line if not (number == 0 and label) else text.split(" "):
                    self.canvas.drawString(x, base, word)
                    x += pdfmetrics.stringWidth(f"{word} ", font, size) + spacing
                continue
            piece.setWordSpace(spacing)
            piece.textOut(text)
            self.canvas.drawText(piece)
        return True

    def paragraph(self) -> bool:
        words = self.words(int(self.rng.integers(40, 90)))
        if self.rng.uniform() < 0.4:  # not a caption
            words = [*f"Figure {self.rng.integers(1, 5)} shows that".split(), *words]
        place = int(self.rng.integers(6, 30))
        words[place:place] = f"(see Fig. {self.rng.integers(1, 5)})".split()
        done = self.text_lines(self.wrap(words, self.look.body, self.look.size, self.width), self.look.body,
                               self.look.size, True)  # fmt: skip
        self.y += self.look.size * 0.6
        return done

    def heading(self) -> bool:
        if not self.room(60):
            return False
        self.y += 6
        done = self.text_lines(
            [[f"{self.rng.integers(1, 7)}", *self.words(3)]], self.look.bold, self.look.size + 2, False
        )
        self.y += 3
        return done

    def caption(self, kind: str) -> tuple[list[list[str]], str, str, str]:
        """Lines, the text, the label with its separator and the label."""
        number = self.counts[kind]
        opening = (self.look.figure if kind == "figure" else self.look.table).format(number)
        words = self.words(int(self.rng.integers(5, 28)))
        words[0] = words[0].capitalize()
        text = f"{opening}{' '.join(words)}."
        lines = self.wrap(text.split(" "), self.look.body, self.look.caption_size, self.width)
        return lines, text, opening.rstrip(), opening.rstrip(" .:|–")

    def set_caption(self, lines: list[list[str]], opening: str) -> bool:
        centre = len(lines) == 1 and not self.look.bold_label
        return self.text_lines(lines, self.look.body, self.look.caption_size, False, centre,
                               opening if self.look.bold_label else "")  # fmt: skip

    # regions

    def figure(self) -> bool:
        look = plots.LOOKS[int(self.rng.integers(len(plots.LOOKS)))]
        what = ("vector", "vector", "vector", "pixels", "two")[int(self.rng.integers(5))]
        width = (
            self.width * self.rng.uniform(0.8, 1.0)
            if self.look.columns > 1
            else self.width * self.rng.uniform(0.5, 0.9)
        )
        height = min(width * self.rng.uniform(0.55, 0.8), 260.0)
        self.counts["figure"] += 1
        lines, text, opening, label = self.caption("figure")
        size = self.look.caption_size * 1.2 * len(lines)
        if not self.room(height + size + 30):
            return False
        self.y += 10
        if self.look.above:
            self.set_caption(lines, opening)
            self.y += 5
        x, top = self.left + (self.width - width) / 2, self.y
        page = self.page
        if what == "vector":
            box = self.vector(look, x, top, width, height)
        elif what == "pixels":
            box = self.picture(x, top, width, height)
        else:  # two panels with one caption
            half = (width - 10) / 2
            first, second = self.picture(x, top, half, height), self.picture(x + half + 10, top, half, height)
            self.canvas.setFont(self.look.body, 7)
            for panel, name in ((first, "(a)"), (second, "(b)")):
                self.canvas.drawCentredString((panel[0] + panel[2]) / 2, self.up(top + height + 8), name)
            box = (first[0], first[1], second[2], top + height + 10)
            height += 12
        self.y = top + height
        if not self.look.above:
            self.y += 5
            self.set_caption(lines, opening)
        self.y += 12
        self.truth.append(Truth(page, "figure", box, label, text))
        return True

    def vector(self, look: str, x: float, top: float, width: float, height: float) -> Box:
        if self.look.library != "reportlab":
            cairo = self.look.library == "cairo"
            data, ink = plots.vector_plot(look, self.rng, width, height, self.look.plot_font, cairo)
            self.places.append(_Place(self.page, data, x, self.up(top + height)))
        else:
            drawing, ink = plots.chart(look, self.rng, width, height, self.look.body)
            renderPDF.draw(drawing, self.canvas, x, self.up(top + height))
        return x + ink[0], top + ink[1], x + ink[2], top + ink[3]

    def picture(self, x: float, top: float, width: float, height: float) -> Box:
        mask, jpeg = self.rng.uniform() < 0.3, self.rng.uniform() < 0.5
        path = self.folder / f"{self.page}-{self.rng.integers(1 << 30)}"
        path = plots.save_pixels(path, self.rng, width, height, mask, jpeg)
        self.canvas.drawImage(str(path), x, self.up(top + height), width, height, mask="auto" if mask else None)
        path.unlink()
        return x, top, x + width, top + height

    def table(self) -> bool:
        rows, columns = int(self.rng.integers(4, 8)), int(self.rng.integers(3, 5))
        size, pitch = self.look.caption_size, self.look.caption_size * 1.5
        self.counts["table"] += 1
        lines, text, opening, label = self.caption("table")
        if not self.room(rows * pitch + size * 1.2 * len(lines) + 34):
            return False
        self.y += 10
        self.set_caption(lines, opening)
        self.y += 6
        step = min(self.width / columns, 90.0)
        cells: list[Box] = []
        x0, top, page = self.left + (self.width - step * columns) / 2, self.y, self.page
        style = self.look.table_style
        for row in range(rows):
            self.y += pitch
            for column in range(columns):
                head = row == 0
                word = self.words(1)[0] if head or column == 0 else f"{self.rng.uniform(0, 100):.2f}"
                self.canvas.setFont(self.look.bold if head else self.look.body, size)
                x, y = x0 + column * step + 4, self.y - 0.4 * size
                self.canvas.drawString(x, self.up(y), word)
                width = pdfmetrics.stringWidth(word, self.look.bold if head else self.look.body, size)
                cells.append((x, y - 0.8 * size, x + width, y + 0.2 * size))
        box = union(cells) if self.look.table_style == "unruled" else (x0, top, x0 + columns * step, self.y)
        self.canvas.setLineWidth(0.5)
        if style == "ruled":
            for column in range(columns + 1):
                x = x0 + column * step
                self.canvas.line(x, self.up(top), x, self.up(self.y))
        for row in {"ruled": range(rows + 1), "booktabs": (0, 1, rows), "unruled": ()}[style]:
            self.canvas.line(x0, self.up(top + row * pitch), box[2], self.up(top + row * pitch))
        self.y += 14
        self.truth.append(Truth(page, "table", box, label, text))
        return True

    def formula(self) -> bool:
        """One line, a fraction with its bar, or two lines under each other."""
        size = self.look.size
        form = ("line", "fraction", "lines")[self.counts["formula"] % 3]
        self.counts["formula"] += 1
        if not self.room(6 * size):
            return False
        self.y += 2.2 * size
        x, base = self.left + self.width * 0.3, self.up(self.y - 0.3 * size)
        boxes = [self.mathematics(x, base, size, " + " if form != "fraction" else "")]
        if form == "fraction":
            bar = boxes[0][2] + 4
            over = self.mathematics(bar + 2, base + 0.75 * size, size, " + ", relation=False)
            under = self.mathematics(bar + 2, base - 0.65 * size, size, " - ", relation=False)
            self.canvas.setLineWidth(0.4)
            self.canvas.line(bar, base + 0.3 * size, bar + 6 + over[2] - over[0], base + 0.3 * size)
            boxes += [over, under]
        elif form == "lines":
            boxes.append(self.mathematics(x, base - 1.5 * size, size, " / "))
            self.y += 1.5 * size
        self.canvas.setFont(self.look.body, size)
        self.canvas.drawRightString(self.left + self.width, base, f"({self.counts['formula']})")
        self.truth.append(Truth(self.page, "formula", union(boxes)))
        self.y += 2.2 * size
        return True

    def mathematics(self, x: float, base: float, size: float, sign: str, *, relation: bool = True) -> Box:
        """Draw letters with signs between them, and return the box of their line."""
        names = [chr(97 + int(index)) for index in self.rng.integers(26, size=4)]
        signs = ["(", ") = ", sign] if relation else [sign]
        left = x
        for place, name in enumerate(names[: len(signs) + bool(sign)]):
            pieces = [(name, self.look.math)]
            if place < len(signs):
                pieces.append((signs[place], self.look.body))
            for text, font in pieces:
                self.canvas.setFont(font, size)
                self.canvas.drawString(x, base, text)
                x += pdfmetrics.stringWidth(text, font, size)
        low, high = 0.22 * size, 0.72 * size
        return left, self.up(base + high), x, self.up(base - low)

    # the file

    def finish(self, path: Path) -> None:
        self.canvas.save()
        document = pypdfium2.PdfDocument(self.buffer.getvalue())
        w, h = self.look.page
        for place in self.places:
            source = pypdfium2.PdfDocument(place.data)
            figure = source.page_as_xobject(0, document).as_pageobject()
            own = pypdfium2.PdfMatrix(1, 0, 0, 1, place.x, place.y)
            figure.set_matrix(own.multiply(pypdfium2.PdfMatrix(*self.matrix(place.page))))
            page = document[place.page - 1]
            page.insert_obj(figure)
            page.gen_content()
            source.close()
        for number in range(1, len(document) + 1):
            page = document[number - 1]
            turn = self.turn(number)
            if turn:
                page.set_rotation(turn)
            if self.look.cropped:
                sides = (h, w) if turn in (90, 270) else (w, h)
                page.set_cropbox(20, 20, 20 + sides[0], 20 + sides[1])
        document.save(str(path))
        document.close()


def write_paper(look: Look, seed: int, folder: Path, pages: int = 3) -> Paper:
    writer = Writer(look, seed, folder, pages)
    things = [writer.paragraph, writer.heading, writer.paragraph, writer.figure, writer.paragraph, writer.formula,
              writer.paragraph, writer.table, writer.paragraph, writer.figure]  # fmt: skip
    turn = 0
    while things[turn % len(things)]():
        turn += 1
    paper = Paper(f"{look.name}-{seed}", folder / f"{look.name}-{seed}.pdf", look, writer.truth)
    writer.finish(paper.path)
    paper.path.with_suffix(".json").write_text(json.dumps([asdict(one) for one in paper.truth]))
    return paper


def write_papers(folder: Path, looks: tuple[Look, ...], each: int, pages: int = 3, seed: int = 0) -> list[Paper]:
    """`each` papers of every look."""
    register_fonts()
    folder.mkdir(parents=True, exist_ok=True)
    return [write_paper(replace(look), seed + 100 * number + place, folder, pages)
            for number, look in enumerate(looks) for place in range(each)]  # fmt: skip
