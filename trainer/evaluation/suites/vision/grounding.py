"""RefCOCO-avg (boxes) and ScreenSpot V2 (points), as VLMEvalKit asks and scores them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, bad_row, find_file, read_rows
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
    if row.get("split"):
        return str(row["split"])
    name, _, rest = str(row.get("category", "")).strip().partition(" ")
    kind = rest.strip().lower().replace(" ", "").replace("_", "").replace("-", "")
    return f"{name}_{_SUFFIXES.get(kind, rest.strip())}"


def read_refcoco(directory: Path) -> Iterator[Item]:
    """Rows of `RefCOCO.tsv`: index, image, question, width, height, split or category, bbox_x1, ... or answer."""
    path = find_file(directory, "RefCOCO.tsv")
    for number, row, paths in images.table(directory, path, "question", "width", "height"):
        split = split_of(row)
        if split not in SPLITS:
            raise bad_row(path, number, f"the split {split} is unknown", value=split, allowed=tuple(SPLITS))
        try:
            width, height = float(row["width"]), float(row["height"])
            box = [float(row[name]) for name in _CORNERS] if _CORNERS[0] in row else _answered(row, width, height)
        except (TypeError, ValueError, KeyError):
            what = "the row has no size in pixels, or no box in bbox_x1 to bbox_y2 or answer"
            raise bad_row(
                path, number, what, value={name: row.get(name) for name in _CORNERS}, allowed="numbers"
            ) from None
        reference = {"box": box, "width": width, "height": height}
        yield Item(f"{split}/{row['index']}", with_images(row["question"], *paths), reference, {"category": split})


def _answered(row: Row, width: float, height: float) -> list[float]:
    found = boxes.box(str(row["answer"]))
    if found is None:
        raise ValueError(row["answer"])
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
        for number, row in enumerate(read_rows(path, "img_filename", "bbox", "instruction", "data_type"), 1):
            image = directory.absolute() / "screenspotv2_image" / row["img_filename"]
            if not image.is_file():
                text = f"{image}: there is no such file; unpack screenspotv2_image.zip into {directory}"
                raise SuiteError(text, where=str(image), allowed="the images of screenspotv2_image.zip")
            if not isinstance(row["bbox"], list) or len(row["bbox"]) != 4:
                what = f"bbox={row['bbox']} has to be [x, y, width, height]"
                raise bad_row(path, number, what, value=row["bbox"], allowed="four numbers")
            width, height = _size(image)
            text = (
                "You act on a screen by clicking with pyautogui. Answer with pyautogui.click(x=..., y=...), both "
                f"coordinates named.\nDo this on the screen by one click:\n{row['instruction']}"
            )
            reference = {"box": row["bbox"], "width": width, "height": height}
            meta = {"category": f"{kind}:{row['data_type']}"}
            yield Item(f"{kind}/{number}", with_images(text, str(image)), reference, meta)


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
