"""The embedded layout on made papers whose truth is known, and on pages that PDFium describes in its own space."""

import io

import numpy as np
import pypdfium2
import pytest
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from tests.trainer.corpora.captions.measured import measure
from tests.trainer.corpora.captions.papers import HELD_OUT, TUNED, write_papers
from trainer.corpora.captions.inputs import Input
from trainer.corpora.captions.layout.boxes import clusters, iou
from trainer.corpora.captions.layout.document import Reading, read_document

# Intersection over union above 0.8: precision and recall
GOALS = {"figure": 0.95, "table": 0.9, "formula": 0.85}


@pytest.mark.parametrize("kind", GOALS)
def test_regions_and_their_captions_are_found(kind, papers):
    found = measure(papers, kind)
    assert found["truth"] >= 4
    assert min(found["precision"], found["recall"]) >= GOALS[kind]
    assert kind == "formula" or found["attached"] >= 0.95


@pytest.mark.slow  # 60 papers: minutes to write
@pytest.mark.parametrize(("looks", "each"), [(TUNED, 4), (HELD_OUT, 4)], ids=["tuned", "held_out"])
def test_regions_of_sixty_papers(looks, each, tmp_path):
    papers = write_papers(tmp_path, looks, each)
    for kind, goal in GOALS.items():
        found = measure(papers, kind)
        print(kind, found)
        assert min(found["precision"], found["recall"]) >= goal
        assert kind == "formula" or found["attached"] >= 0.95


JPEG = 6  # of 255: what JPEG may change inside of one colour


def crops_of(data: bytes, tmp_path, name="a.pdf"):
    path = tmp_path / name
    path.write_bytes(data)
    return list(read_document(Input(str(path), "CC0", "here"), 72, Reading()))


def drawn(draw, size=(400, 500)) -> bytes:
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=size, invariant=1)
    draw(canvas)
    canvas.save()
    return file.getvalue()


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("cut", [0, 30], ids=["whole", "cropped"])
def test_a_crop_shows_what_a_reader_sees(turn, cut, tmp_path):
    """A picture with four colours, whose crop has them in the corners where the shown page has them."""
    colours = np.array([[[255, 0, 0], [0, 160, 0]], [[0, 0, 255], [90, 90, 90]]], np.uint8)
    picture = Image.fromarray(colours).resize((80, 60), Image.Resampling.NEAREST)
    data = drawn(lambda canvas: canvas.drawInlineImage(picture, 120, 300, 80, 60))
    document = pypdfium2.PdfDocument(data)
    document[0].set_rotation(turn)
    if cut:
        document[0].set_cropbox(cut, cut + 10, 390, 480)
    shown = np.asarray(document[0].render(scale=1).to_pil().convert("RGB"))
    file = io.BytesIO()
    document.save(file)
    (crop,) = crops_of(file.getvalue(), tmp_path)
    ys, xs = np.nonzero((shown < 250).any(2))
    assert iou(crop.box, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)) > 0.9
    assert crop.page_size == (shown.shape[1], shown.shape[0])
    pixels = np.asarray(Image.open(io.BytesIO(crop.image)).convert("RGB"))
    assert (crop.width, crop.height) == (pixels.shape[1], pixels.shape[0])
    corners = [(8, 8), (8, -8), (-8, 8), (-8, -8)]
    inner = shown[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    for place in corners:
        assert pixels[place] == pytest.approx(inner[place], abs=JPEG)
    assert crop.format == "jpeg"


def test_a_soft_mask_is_applied(tmp_path):
    ink = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    ink.paste((200, 0, 0, 255), (10, 10, 50, 50))
    path = tmp_path / "ink.png"
    ink.save(path)
    (crop,) = crops_of(drawn(lambda canvas: canvas.drawImage(str(path), 100, 100, 60, 60, mask="auto")), tmp_path)
    pixels = np.asarray(Image.open(io.BytesIO(crop.image)).convert("RGB"))
    assert pixels[3, 3] == pytest.approx([255, 255, 255], abs=JPEG)  # black where the mask is dropped
    assert pixels[30, 30] == pytest.approx([200, 0, 0], abs=JPEG)


def test_drawings_inside_of_forms_are_found_where_they_are_shown(tmp_path):
    def draw(canvas):
        canvas.beginForm("f")
        canvas.rect(0, 0, 80, 60, fill=1)
        canvas.endForm()
        canvas.translate(200, 300)
        canvas.scale(1.5, 1)
        canvas.doForm("f")

    (crop,) = crops_of(drawn(draw), tmp_path)
    assert iou(crop.box, (200, 500 - 360, 320, 500 - 300)) > 0.9


def test_what_a_clip_hides_is_not_a_part_of_a_figure(tmp_path):
    def draw(canvas):
        path = canvas.beginPath()
        path.rect(100, 200, 90, 80)
        canvas.clipPath(path, stroke=0)
        canvas.rect(20, 20, 350, 450, fill=1)
        canvas.setFillColorRGB(1, 0, 0)
        canvas.circle(140, 240, 20, fill=1)

    (crop,) = crops_of(drawn(draw), tmp_path)
    assert iou(crop.box, (100, 220, 190, 300)) > 0.9


CAPTIONS = [
    ("Figure 2: a signal", "Figure 2"),
    ("Fig. 3. A signal", "Fig. 3"),
    ("FIG. 4 - a signal", "FIG. 4"),
    ("Abb. 5: ein Signal", "Abb. 5"),
    ("Figure S6 | A signal", "Figure S6"),
    ("Figure IV. A signal", "Figure IV"),
    ("Figure 2 shows a signal", None),
    ("Figures of merit: a signal", None),
    ("Figure out: a signal", None),
    ("as in figure 2. A signal", None),
]


@pytest.mark.parametrize(("text", "label"), CAPTIONS, ids=[text for text, _ in CAPTIONS])
def test_a_caption_is_known_by_its_number_and_what_follows(text, label, tmp_path):
    """The caption is in the size of the body, so that only its mark sets it apart."""

    def draw(canvas):
        canvas.setFont("Times-Roman", 10)
        for row in range(6):
            canvas.drawString(60, 460 - 12 * row, "the body of the text runs on and on with words and more words")
        canvas.rect(100, 200, 200, 120, fill=1)
        canvas.drawString(100, 185, text)

    (crop,) = [crop for crop in crops_of(drawn(draw), tmp_path) if crop.kind == "figure"]
    assert (crop.label, crop.caption) == ((label, text) if label else ("", ""))
    assert "the body of the text" in crop.context
    assert (crop.licence, crop.source, crop.found_by) == ("CC0", "here", "embedded")


def rows(canvas, top, cells, step=70, left=60):
    canvas.setFont("Times-Roman", 9)
    for row, texts in enumerate(cells):
        for column, text in enumerate(texts):
            canvas.drawString(left + column * step, top - 13 * row, text)


CELLS = [["name", "mass", "charge"], ["e", "0.511", "-1"], ["p", "938.3", "+1"], ["n", "939.6", "0"]]


@pytest.mark.parametrize("style", ["grid", "rules", "none", "boxes"])
def test_a_table_is_found_by_its_rules_or_its_rows(style, tmp_path):
    def draw(canvas):
        canvas.setFont("Times-Roman", 10)
        for row in range(5):
            canvas.drawString(60, 460 - 12 * row, "the body of the text runs on and on with words and more words")
        canvas.setFont("Times-Roman", 9)
        canvas.drawString(60, 365, "Table S2. Three particles")
        rows(canvas, 340, CELLS)
        if style == "boxes":  # a rectangle for each cell, as office programs draw them
            for row in range(4):
                for column in range(3):
                    canvas.rect(56 + 70 * column, 336 - 13 * row, 70, 13)
        if style == "grid":
            for column in range(4):
                canvas.line(56 + 70 * column, 349, 56 + 70 * column, 297)
        for row in {"grid": range(5), "rules": (0, 1, 4), "none": (), "boxes": ()}[style]:
            canvas.line(56, 349 - 13 * row, 266, 349 - 13 * row)

    (crop,) = crops_of(drawn(draw), tmp_path)
    text = (60, 151, 60 + 140 + 26, 203)
    assert iou(crop.box, text if style == "none" else (56, 151, 266, 203)) > 0.8
    assert (crop.kind, crop.label, crop.caption) == ("table", "Table S2", "Table S2. Three particles")
    assert crop.text.split() == [word for row in CELLS for word in row]


def test_a_drawing_of_rules_over_a_figures_caption_is_a_figure(tmp_path):
    def draw(canvas):
        canvas.rect(60, 300, 90, 60)
        canvas.rect(200, 300, 90, 60)
        canvas.line(150, 330, 200, 330)
        canvas.drawString(85, 326, "input")
        canvas.drawString(220, 326, "output")
        canvas.drawString(60, 280, "Figure 1: two boxes")

    (crop,) = crops_of(drawn(draw), tmp_path)
    assert (crop.kind, crop.label) == ("figure", "Figure 1")
    assert iou(crop.box, (60, 140, 290, 200)) > 0.9


def test_a_formula_is_set_apart_from_sentences_and_headings(tmp_path):
    def draw(canvas):
        canvas.setFont("Times-Bold", 12)
        canvas.drawString(60, 480, "2 Results of the fit")
        canvas.setFont("Times-Roman", 10)
        for row in range(5):
            canvas.drawString(60, 460 - 12 * row, "the mean is x = 3 and the body of the text runs on with words")
        canvas.setFont("Times-Italic", 10)
        canvas.drawString(150, 380, "E = mc")
        canvas.setFont("Times-Roman", 7)
        canvas.drawString(178, 384, "2")
        canvas.setFont("Times-Roman", 10)
        canvas.drawRightString(310, 380, "(12)")
        for row in range(4):
            canvas.drawString(60, 350 - 12 * row, "more of the body of the text follows with words to its end")

    (crop,) = crops_of(drawn(draw), tmp_path)
    assert crop.kind == "formula"
    assert iou(crop.box, (150, 500 - 390, 182, 500 - 378)) > 0.7
    assert "(12)" not in crop.text


def test_what_every_page_shows_is_not_a_figure(tmp_path):
    def draw(canvas):
        for page in range(4):
            canvas.rect(300, 440, 60, 40, fill=1)
            if page == 1:
                canvas.rect(100, 200, 90, 80, fill=1)
            canvas.showPage()

    reading = Reading()
    path = tmp_path / "a.pdf"
    path.write_bytes(drawn(draw))
    assert [crop.page for crop in read_document(Input(str(path)), 72, reading)] == [2]
    assert reading.crops.to_json() == {"in": 5, "out": 1, "dropped": {"on every page": 4}}


def test_clusters_are_those_of_all_pairs():
    """Against a comparison of all pairs; the grid has cells of two points."""
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 280, (40, 2)) * 1.0
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, rng.integers(3, 25, (40, 2)), strict=True)]
    groups = clusters(boxes, (310, 310), 4.0)
    assert sorted(place for group in groups for place in group) == list(range(40))
    home = {place: number for number, group in enumerate(groups) for place in group}
    for one in range(40):
        for other in range(one):
            a, b = boxes[one], boxes[other]
            gap = max(max(a[0], b[0]) - min(a[2], b[2]), max(a[1], b[1]) - min(a[3], b[3]))
            assert gap > 1 or home[one] == home[other]
    assert 1 < len(groups) < 40
