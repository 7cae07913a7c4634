"""SArena-Icon: icons drawn as SVG from words or from an image, and questions about SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, find_file, read_rows
from trainer.evaluation.scorers.drawing.compare import signal_to_noise, svg_in
from trainer.evaluation.scorers.worker import Worker
from trainer.evaluation.suite import Item, Scored, Suite, SuiteError, Summary, mean
from trainer.evaluation.suites.tasks import user, with_images

RENDERER = Worker("trainer.evaluation.scorers.drawing.worker")
EDITS = (
    "color_complex",
    "color_simple",
    "crop",
    "flip",
    "opacity",
    "outline",
    "rotate",
    "scale",
    "styletransform_openmoji",
    "translate",
)


def read(directory: Path) -> Iterator[Item]:
    """Rows of `Icon/`: understanding/sarena_un.jsonl, generation/text2svg.jsonl and img2svg.jsonl, edit/EDIT.jsonl.

    Each has id and conversations, the question first and the answer second. Reference images are in generation/images
    and edit/data/EDIT/images, named ID.png.
    """
    icons = directory / "Icon"
    path = find_file(icons, "understanding/sarena_un.jsonl")
    for row in read_rows(path, "id", "conversations"):
        question, answer = row.said("conversations", "value", 2)
        right = answer.strip()[:1]
        if right not in tuple("ABCD"):
            raise row.fault(f"the answer {answer!r} is not A to D", value=answer, allowed=tuple("ABCD"))
        yield Item(f"understanding/{row.name('id')}", user(question), right, {"task": "understanding"})
    for task in ("text2svg", "img2svg"):
        path = find_file(icons, f"generation/{task}.jsonl")
        for row in read_rows(path, "id", "conversations"):
            (question,) = row.said("conversations", "value", 1)
            image = _image(icons / "generation", row)
            shown = [image] if task == "img2svg" else []
            messages = with_images(question.replace("<image>", "").strip(), *shown)
            yield Item(f"{task}/{row.name('id')}", messages, image, {"task": task})
    for edit in EDITS:
        path = find_file(icons, f"edit/{edit}.jsonl")
        for row in read_rows(path, "id", "conversations"):
            (question,) = row.said("conversations", "value", 1)
            image = _image(icons / "edit/data" / edit, row)
            yield Item(
                f"{edit}/{row.name('id')}", user(f"{question}\nAnswer with the SVG alone."), image, {"task": "edit"}
            )


def _image(folder: Path, row: Row) -> str:
    image = folder.absolute() / "images" / f"{row.name('id')}.png"
    if not image.is_file():
        text = f"{image}: there is no such file; unpack SArena.zip again"
        raise SuiteError(text, where=str(image), allowed="the images of SArena.zip")
    return str(image)


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    """The scores of a drawing; of understanding, as published, the first capital A to D counts, in a word too."""
    if item.meta["task"] == "understanding":
        found = re.search("[A-D]", answer)
        return {"correct": found is not None and found[0] == item.reference, "parsed": found is not None}
    try:
        found = RENDERER.ask({"svg": svg_in(answer), "image": item.reference})
    except TimeoutError:
        found = RENDERER.ask({"svg": "", "image": item.reference})
    return {"ssim": found["ssim"], "mse": found["mse"], "parsed": found["rendered"]}


def summarise(scored: Sequence[Scored]) -> Summary:
    """The structural similarity of icons drawn from images, in per cent; categories: that of each task, and the
    accuracy of understanding; metrics: the tasks' PSNR in dB, mean squared errors and shares rendered."""
    tasks: dict[str, list[Scored]] = {}
    for one in scored:
        tasks.setdefault(one.item.meta["task"], []).append(one)
    figures, further = {}, {}
    for task, rows in sorted(tasks.items()):
        values = [one.values for one in rows]
        if task == "understanding":
            figures[task] = mean([float(one["correct"]) for one in values]) * 100
            continue
        figures[task] = mean([one["ssim"] for one in values]) * 100
        further[f"{task} psnr"] = mean([signal_to_noise(one["mse"]) for one in values])
        further[f"{task} mse"] = mean([one["mse"] for one in values])
        further[f"{task} rendered"] = mean([float(one["parsed"]) for one in values]) * 100
    return Summary(figures.get("img2svg", math.nan), further, figures)


SUITES = (
    Suite(
        name="SArena-Icon",
        domain="vision",
        metric="structural similarity (SSIM) in per cent of icons drawn from images, with PSNR, MSE and accuracies "
        "beside it. It is NOT the report's score, which adds CLIP, DINOv2 and LPIPS: those are models to download, and "
        "VLMEvalKit computes them",
        metric_source="VLMEvalKit: dataset/sarena.py, dataset/utils/SArena/; rendered by cairosvg at 448 x 448",
        where_data="Icon/ of SArena.zip (JoeLeelyf/SArena-VLMEvalKit on Hugging Face)",
        reported=83.5,
        read=read,
        score=score,
        summarise=summarise,
        packages=("cairosvg", "scipy", "pillow"),
        modalities=("image",),
    ),
)
