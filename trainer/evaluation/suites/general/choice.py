"""MMLU-Pro (text) and MMMU-Pro (images), read as published and scored by their own rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, find_files, read_rows
from trainer.evaluation.scorers import choices
from trainer.evaluation.suite import Item, Scored, Suite, Summary, mean, mean_of
from trainer.evaluation.suites.tasks import listed, user
from trainer.evaluation.suites.vision import images

_PLACE = re.compile(r"<image (\d)>")
_THINK = "Think step by step, and end with a line of the form 'Answer: X', where X is the letter of the option."


def read_mmlu(directory: Path) -> Iterator[Item]:
    """Rows of `test-*.parquet`: question_id, question, options, answer, category. Options "N/A" are left out."""
    for path in find_files(directory, "test-*.parquet", "data/test-*.parquet", "test.jsonl"):
        needed = ("question_id", "question", "options", "answer", "category")
        for row in read_rows(path, *needed):
            options = {key: text for key, text in choices.by_letter(row.texts("options")).items() if text != "N/A"}
            about, question = row.text("category"), row.text("question")
            text = f"A multiple-choice question about {about}.\n\n{question}\n{listed(options)}\n{_THINK}"
            meta = {"category": about, "options": options}
            yield Item(row.name("question_id"), user(text), row.choice("answer", options), meta)


def score_mmlu(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    found = choices.mmlu_pro(answer)
    return {"correct": found == item.reference, "parsed": found is not None, "letter": found}


def read_mmmu(directory: Path) -> Iterator[Item]:
    """Rows of `standard (10 options)/test-*.parquet` (id, question, options, image_1, ..., answer, subject) and of
    `vision/test-*.parquet` (id, image, options, answer, subject)."""
    for path in find_files(directory, "standard (10 options)/test-*.parquet", "standard*10*/test-*.parquet"):
        for row in read_rows(path, "id", "question", "options", "answer", "subject"):
            options = _options(row)
            parts = _with_places(directory, row, f"{row.text('question')}\n{listed(options)}\n{_THINK}")
            yield _mmmu_item("standard", row, options, parts)
    for path in find_files(directory, "vision/test-*.parquet"):
        for row in read_rows(path, "id", "image", "options", "answer", "subject"):
            options = _options(row)
            image = images.column(directory, row, "image")
            text = f"The image shows a multiple-choice question. Answer it. {_THINK}"
            parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
            yield _mmmu_item("vision", row, options, parts)


def _mmmu_item(setting: str, row: Row, options: dict[str, str], parts: list[dict[str, Any]]) -> Item:
    meta = {"category": setting, "subject": row.text("subject"), "options": options}
    right = row.choice("answer", options)
    return Item(f"{setting}/{row.name('id')}", [{"role": "user", "content": parts}], right, meta)


def _options(row: Row) -> dict[str, str]:
    found = row.value("options")
    if isinstance(found, str):  # published as the text of a Python list
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError):
            raise row.wrong("options", "a list") from None
    if not isinstance(found, list) or not all(isinstance(one, str | int | float) for one in found):
        raise row.wrong("options", "a list of texts")
    return choices.by_letter([str(one) for one in found])


def _with_places(directory: Path, row: Row, text: str) -> list[dict[str, Any]]:
    """Parts of a message: the images where the text has `<image 1>`, and the text between."""
    parts: list[dict[str, Any]] = []
    for place, piece in enumerate(_PLACE.split(text)):
        if place % 2:
            image = images.column(directory, row, f"image_{piece}")
            parts.append({"type": "image_url", "image_url": {"url": image}})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def score_mmmu(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    found = choices.mmmu_pro(answer, item.meta["options"])
    return {"correct": found == item.reference, "parsed": found is not None, "letter": found}


def summarise_mmmu(scored: Sequence[Scored]) -> Summary:
    """The mean of the accuracies in the two settings, as the benchmark's overall score."""
    settings = mean_of("correct")(scored).categories
    subjects = mean_of("correct", by="subject")(scored).categories
    return Summary(mean(list(settings.values())), subjects, settings)


SUITES = (
    Suite(
        name="MMMU-Pro",
        domain="several subjects",
        metric="accuracy in per cent: mean of the settings standard (10 options) and vision",
        metric_source="MMMU-Benchmark/MMMU, mmmu-pro/evaluate.py, but nothing found is wrong and not a random letter",
        where_data="'standard (10 options)/test-*.parquet' and 'vision/test-*.parquet' (MMMU/MMMU_Pro on Hugging Face)",
        reported=72.8,
        read=read_mmmu,
        score=score_mmmu,
        summarise=summarise_mmmu,
        packages=("pyarrow",),
        modalities=("image",),
    ),
    Suite(
        name="MMLU-Pro",
        domain="several subjects",
        metric="accuracy in per cent, without examples in the prompt",
        metric_source="TIGER-AI-Lab/MMLU-Pro, compute_accuracy.py, but nothing found is wrong and not a random letter",
        where_data="test-*.parquet, in data/ or not (TIGER-Lab/MMLU-Pro on Hugging Face)",
        reported=86.6,
        read=read_mmlu,
        score=score_mmlu,
        summarise=mean_of("correct"),
        packages=("pyarrow",),
    ),
)
