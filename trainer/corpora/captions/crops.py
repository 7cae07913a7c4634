"""A crop: one figure, table or formula of a page, as every stage of the pipeline passes it on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["figure", "table", "formula", "caption"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Box = tuple[float, float, float, float]
DECIMALS = 2  # of a box, in points: a quarter of a pixel at 1800 dpi

POINTS_PER_INCH = 72.0


@dataclass(frozen=True)
class Crop:
    """A region of a page of a PDF, what is drawn in it, and the text that belongs to it.

    id: 32 hexadecimal digits, a hash of pdf, page, box and kind (`crop_id`); the key of a crop in every stage.
    pdf: SHA-256 of the PDF's bytes, 64 hexadecimal digits. document: the path of the input as the command found it.
    page: from 1. page_size: (width, height) of the page as a reader shows it, in points, turned by /Rotate and cut to
    its CropBox. box: (x0, y0, x1, y1) in points, from the top left corner of that page, y downwards.
    kind: `caption` is a caption that belongs to no region that was found; its box is that of its text.
    label: kind and number that the caption opens with, such as "Fig. 2"; "" without one. caption: the whole caption,
    with its label. context: text of the document near the region or about it, paragraphs separated by a blank line.
    text: what is written inside of the box, such as the names of axes.
    image: the file's bytes, `format` ("png" or "jpeg") says of what kind; b"" where images were not read. width,
    height: its pixels. dpi: pixels per 72 points of `box`. found_by: the reader, such as "embedded" or "mineru 3".
    licence, source: of the document, as its list of inputs says; "" without.
    """

    id: str
    pdf: str
    document: str
    page: int
    page_size: tuple[float, float]
    box: Box
    kind: Kind
    label: str
    caption: str
    context: str
    text: str
    image: bytes
    format: str
    width: int
    height: int
    dpi: float
    found_by: str
    licence: str
    source: str


def crop_id(pdf: str, page: int, box: Box, kind: Kind) -> str:
    """The key of a crop: equal for equal regions of equal PDFs, whatever their files are called."""
    numbers = " ".join(f"{value:.{DECIMALS}f}" for value in rounded(box))
    return hashlib.sha256(f"{pdf} {page} {numbers} {kind}".encode()).hexdigest()[:32]


def rounded(box: Box) -> Box:
    """The box as it is stored; a zero has no sign."""
    x0, y0, x1, y1 = (round(value, DECIMALS) + 0.0 for value in box)
    return x0, y0, x1, y1
