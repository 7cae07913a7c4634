"""One PDF as crops."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.corpora.captions.crops import POINTS_PER_INCH, Box, Crop, crop_id, rounded
from trainer.corpora.captions.inputs import Input
from trainer.corpora.captions.layout.context import context_of, mentions_of
from trainer.corpora.captions.layout.page import PageTooLargeError, read_page
from trainer.corpora.captions.layout.regions import Layout, Region, layout_of
from trainer.corpora.captions.reports import Count

FOUND_BY = "embedded"
MOST_BYTES = 1 << 30  # of a PDF
MOST_PAGES = 5000
MOST_SIDE = 14_400.0  # points: 200 inches, the largest page that PDF 1.7 knows without a UserUnit
MOST_PIXELS = 1 << 24  # of a crop; a larger one is rendered at fewer dpi
QUALITY = 92  # of a JPEG
REPEATS = 3  # pages on which a figure without caption is at one place, by which it is a part of the page's frame


class RefusedError(Exception):
    """A document that cannot be read. reason: what the report counts it under. problem: about this one."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(reason, problem)
        self.reason, self.problem = reason, problem


@dataclass
class Reading:
    """The account of the pages and regions of a document. problems: of its pages that were left out."""

    pdf: str = ""
    pages: Count = field(default_factory=Count)
    crops: Count = field(default_factory=Count)
    problems: list[str] = field(default_factory=list)


@dataclass
class _Found:
    number: int
    size: tuple[float, float]
    layout: Layout


def read_document(document: Input, dpi: float, reading: Reading) -> Iterator[Crop]:
    """The crops of a PDF in the order of its pages, and each page's from top to bottom; `reading` is filled on the way.

    dpi: of the crops, unless one had more than `MOST_PIXELS`. Memory: one page and one crop, and the text of all pages.
    Raises RefusedError; OSError for a file that cannot be read.
    """
    import pypdfium2

    path = Path(document.path)
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise RefusedError("too large", f"{size:,} bytes; at most {MOST_BYTES:,} are read")
    with path.open("rb") as file:
        reading.pdf = hashlib.file_digest(file, "sha256").hexdigest()
    pdf = _open(path)
    try:
        count = len(pdf)
        if count > MOST_PAGES:
            raise RefusedError("too large", f"{count:,} pages; at most {MOST_PAGES:,} are read")
        found: list[_Found] = []
        for number in range(1, count + 1):
            try:
                found.append(_layout(pdf, number))
            except (pypdfium2.PdfiumError, PageTooLargeError) as error:
                reason = "too large" if isinstance(error, PageTooLargeError) else "broken"
                reading.pages.drop(reason)
                reading.problems.append(f"page {number} is {reason} ({error})")
                continue
            reading.pages.keep()
        yield from _crops(pdf, document, dpi, reading, found)
    except pypdfium2.PdfiumError as error:
        raise RefusedError("broken", f"a page cannot be drawn ({error})") from None
    finally:
        pdf.close()


def _open(path: Path) -> Any:
    import pypdfium2
    import pypdfium2.raw

    try:
        return pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        locked = error.err_code in (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY)
        if locked:
            raise RefusedError("encrypted", "it needs a password") from None
        raise RefusedError("broken", "it is not a PDF, or a broken one") from None


def _layout(pdf: Any, number: int) -> _Found:
    import pypdfium2

    page = pdf[number - 1]
    try:
        width, height = page.get_size()
        if width <= 0 or height <= 0:
            raise pypdfium2.PdfiumError("it has no area")
        if width > MOST_SIDE or height > MOST_SIDE:
            raise PageTooLargeError(f"{width:,.0f} x {height:,.0f} points")
        content = read_page(page, number)
        return _Found(number, content.size, layout_of(content))
    finally:
        page.close()


def _crops(pdf: Any, document: Input, dpi: float, reading: Reading, found: list[_Found]) -> Iterator[Crop]:
    mentions = mentions_of(block.text for one in found for block in one.layout.body)
    frame = _frame(found)
    for one in found:
        if one.layout.small:
            reading.crops.drop("small", one.layout.small)
        captions = [Region("caption", caption.box, caption) for caption in one.layout.captions]
        regions = [*one.layout.regions, *captions]
        if not regions:
            continue
        page = pdf[one.number - 1]
        try:
            for region in regions:
                if region.caption is None and _place(region) in frame:
                    reading.crops.drop("on every page")
                    continue
                box = rounded(_within(region.box, one.size))
                rendered = _render(page, box, one.size, dpi, region.photo)
                if rendered is None:
                    reading.crops.drop("blank")
                    continue
                reading.crops.keep()
                image, width, height, used = rendered
                caption = region.caption
                yield Crop(
                    id=crop_id(reading.pdf, one.number, box, region.kind), pdf=reading.pdf, document=document.name,
                    page=one.number, page_size=one.size, box=box, kind=region.kind,
                    label=caption.label if caption else "", caption=caption.text if caption else "",
                    context=context_of(caption, box, one.layout.body, mentions),
                    text=" ".join(block.text for block in region.texts), image=image,
                    format="jpeg" if region.photo else "png", width=width,
                    height=height, dpi=used, found_by=FOUND_BY, licence=document.licence, source=document.source,
                )  # fmt: skip
        finally:
            page.close()


def _place(region: Region) -> Box:
    x0, y0, x1, y1 = region.box
    return round(x0), round(y0), round(x1), round(y1)


def _frame(found: list[_Found]) -> set[Box]:
    """Places of what many pages show alike, such as a logo."""
    places = Counter(_place(region) for one in found for region in one.layout.regions if region.caption is None)
    return {place for place, count in places.items() if count >= max(REPEATS, len(found) / 3)}


def _within(box: Box, size: tuple[float, float]) -> Box:
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], size[0]), min(box[3], size[1])


def _render(
    page: Any, box: Box, size: tuple[float, float], dpi: float, photo: bool
) -> tuple[bytes, int, int, float] | None:
    """A part of the page with its width, height and dpi; None for one that has one colour all over."""
    x0, y0, x1, y1 = box
    scale = dpi / POINTS_PER_INCH
    pixels = (x1 - x0) * (y1 - y0) * scale * scale
    if pixels > MOST_PIXELS:
        scale *= (MOST_PIXELS / pixels) ** 0.5
    cut = (x0, size[1] - y1, size[0] - x1, y0)  # pypdfium2: left, bottom, right, top
    try:
        bitmap = page.render(scale=scale, crop=cut, rev_byteorder=True, may_draw_forms=False)
    except ValueError:  # less than a pixel
        return None
    try:
        image = bitmap.to_pil()
        low, high = zip(*image.getextrema(), strict=True)
        if min(low) == max(high):
            return None
        file = io.BytesIO()
        if photo:
            image.save(file, "JPEG", quality=QUALITY)
        else:  # the first level takes a quarter of the time of the usual sixth, for an eighth more bytes
            image.save(file, "PNG", compress_level=1)
        return file.getvalue(), image.width, image.height, scale * POINTS_PER_INCH
    finally:
        bitmap.close()
