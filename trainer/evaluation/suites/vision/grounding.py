"""RefCOCO-avg (boxes) and ScreenSpot V2 (points), as VLMEvalKit asks and scores them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, find_file, read_rows
from trainer.evaluation.scorers import boxes
from trainer.evaluation.suite import Item, Scored, Suite, SuiteError, Summary, mean, mean_of
from trainer.evaluation.suites.tasks import with_images
from trainer.evaluation.suites.vision import images

SPLITS = [
    "RefCOCO_val",
    "RefCOCO_testA",
    "RefCOCO_testB",
    "RefCOCO+_val",
    "RefCOCO+_testA",
    "RefCOCO+_testB",
    "RefCOCOg_val",
    "RefCOCOg_test",
]
_SUFFIXES = {"val": "val", "test": "test", "testa": "testA", "testb": "testB"}
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
SCREENS = ("desktop", "mobile", "web")


def split_of(row: Row) -> str:
    """`RefCOCO_testA`, from the column split, or from a category such as "RefCOCO testA"."""
    if split := row.text("split", missing=""):
        return split
    name, _, rest = row.text("category").strip().partition(" ")
    kind = rest.strip().lower().replace(" ", "").replace("_", "").replace("-", "")
    return f"{name}_{_SUFFIXES.get(kind, rest.strip())}"


def read_refcoco(directory: Path) -> Iterator[Item]:
    """Rows of `RefCOCO.tsv`: index, image, question, width, height, split or category, bbox_x1, ... or answer."""
    path = find_file(directory, "RefCOCO.tsv")
    for row, paths in images.table(directory, path, "question"):
        split = split_of(row)
        if split not in SPLITS:
            raise row.fault(f"the split {split} is unknown", value=split, allowed=tuple(SPLITS))
        given = _CORNERS[0] in row.cells
        # without a size the boxes have to be shares of the image, which is then taken as one by one, as published
        width, height = (_length(row, name) if name in row.cells else 1.0 for name in ("width", "height"))
        box = [row.numeral(name) for name in _CORNERS] if given else _answered(row, width, height)
        if width == height == 1 and max(map(abs, box)) > 1.5:
            raise row.fault("a box in pixels needs the image's width and height", value=box, allowed="both columns")
        reference = {"box": box, "width": width, "height": height}
        messages = with_images(row.text("question"), *paths)
        yield Item(f"{split}/{row.name('index')}", messages, reference, {"category": split})


def _length(row: Row, name: str) -> float:
    if (found := row.numeral(name)) <= 0:
        raise row.wrong(name, "a number of pixels")
    return found


def _answered(row: Row, width: float, height: float) -> list[float]:
    found = boxes.box(row.text("answer"))
    if found is None:
        raise row.wrong("answer", "a box of four numbers, where there is no bbox_x1")
    unit = (width, height) * 2 if max(map(abs, found)) <= 1.5 else (1.0,) * 4
    return [edge * size for edge, size in zip(found, unit, strict=True)]


def score_refcoco(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    found, size = boxes.box(answer), (item.reference["width"], item.reference["height"])
    overlap = 0.0 if found is None else boxes.overlap(boxes.in_pixels(found, *size), item.reference["box"])
    return {"correct": overlap >= 0.5, "overlap": overlap, "parsed": found is not None}


def summarise_refcoco(scored: Sequence[Scored]) -> Summary:
    """The mean of the splits' accuracies; metrics: `overlap`, the mean over the splits of the mean overlap."""
    hits, overlaps = mean_of("correct")(scored), mean_of("overlap", unit=1)(scored)
    splits = list(hits.categories.values())
    overlap = mean(list(overlaps.categories.values())) if splits else math.nan
    return Summary(mean(splits), {"overlap": overlap}, hits.categories)


def read_screens(directory: Path) -> Iterator[Item]:
    """Rows of `screenspot_KIND_v2.json` and the images in `screenspotv2_image/`, unpacked from the zip."""
    for kind in SCREENS:
        path = find_file(directory, f"screenspot_{kind}_v2.json")
        for row in read_rows(path, "img_filename", "bbox", "instruction", "data_type"):
            image = directory.absolute() / "screenspotv2_image" / row.text("img_filename")
            if not image.is_file():
                text = f"{image}: there is no such file; unpack screenspotv2_image.zip into {directory}"
                raise SuiteError(text, where=str(image), allowed="the images of screenspotv2_image.zip")
            box = row.numbers("bbox", 4)  # x, y, width, height
            width, height = _size(image)
            text = (
                "You act on a screen by clicking with pyautogui. Answer with pyautogui.click(x=..., y=...), both "
                f"coordinates named.\nDo this on the screen by one click:\n{row.text('instruction')}"
            )
            reference = {"box": box, "width": width, "height": height}
            meta = {"category": f"{kind}:{row.text('data_type')}"}
            yield Item(f"{kind}/{row.number}", with_images(text, str(image)), reference, meta)


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def score_screens(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    # without a click the published scorer takes the corner (0, 0)
    click, reference = boxes.point(answer), item.reference
    hit = boxes.hits(click or (0.0, 0.0), reference["box"], reference["width"], reference["height"])
    return {"correct": hit, "parsed": click is not None}


SUITES = (
    Suite(
        name="RefCOCO-avg",
        domain="vision",
        metric="answers whose box overlaps the reference by 0.5 or more (IoU), in per cent, averaged over eight splits",
        metric_source="VLMEvalKit: dataset/refcoco.py",
        where_data="RefCOCO.tsv (mjuicem/RefCOCO-VLMEvalKit on Hugging Face)",
        reported=91.9,
        read=read_refcoco,
        score=score_refcoco,
        summarise=summarise_refcoco,
        modalities=("image",),
    ),
    Suite(
        name="ScreenSpot V2",
        domain="vision",
        metric="clicks inside the target's box, in per cent of all questions",
        metric_source="VLMEvalKit: dataset/GUI/screenspot.py",
        where_data="screenspot_desktop_v2.json, _mobile_, _web_ and screenspotv2_image.zip unpacked "
        "(OS-Copilot/ScreenSpot-v2 on Hugging Face)",
        reported=93.6,
        read=read_screens,
        score=score_screens,
        summarise=mean_of("correct"),
        packages=("pillow",),
        modalities=("image",),
    ),
)
