"""SFE, the Scientists' First Exam, as VLMEvalKit asks and scores it: a judge gives 0 to 9."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.evaluation.files import find_file
from trainer.evaluation.suite import Item, Message, Suite, mean_of
from trainer.evaluation.suites.tasks import listed, user
from trainer.evaluation.suites.vision import images
from trainer.evaluation.suites.vision.choice import options_of

_FORMS = {
    "mcq": "The question is multiple choice: answer with the letter of the option.",
    "exact_match": "Answer with one word or phrase.",
    "open_ended": "The question is open: answer with a phrase.",
}


def read(directory: Path) -> Iterator[Item]:
    """Rows of `SFE.tsv` (English): image (one or several), question with as many `<image>`, question_type, answer."""
    path = find_file(directory, "SFE.tsv")
    for row, paths in images.table(directory, path, "question", "question_type", "answer", "category"):
        kind, question, category = row.choice("question_type", _FORMS), row.text("question"), row.text("category")
        asked = f"You are an expert in {category}. {_FORMS[kind]} {question}"
        if kind == "mcq" and (options := options_of(row)):
            asked += f"\nThe options are:\n{listed(options)}"  # options may be images as well
        pieces = asked.split("<image>")
        if len(pieces) != len(paths) + 1:
            what = f"the question has {len(pieces) - 1} times <image>, and the row {len(paths)} images"
            raise row.fault(what, value=len(pieces) - 1, allowed=len(paths))
        parts: list[dict[str, Any]] = []
        for text, image in zip(pieces, [*paths, None], strict=True):
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
            if image is not None:
                parts.append({"type": "image_url", "image_url": {"url": image}})
        meta = {"category": category, "question": question}
        yield Item(row.name("index"), [{"role": "user", "content": parts}], row.name("answer"), meta)


def judge(item: Item, answer: str) -> list[Message]:
    return user(
        "Grade the model's answer against the reference with a whole number from 0 (wrong) to 9 (right). "
        "Look for the final answer in the text. Multiple choice: the letter or the option's text counts. Otherwise "
        "compare meanings, whatever the form; take points off for what is missing or wrong. Numbers have to agree "
        "within a reasonable precision, and units as well. Reply with the number alone.\n\n"
        f"Question: {item.meta['question']}\nReference: {item.reference}\nAnswer: {answer}"
    )


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    """The judge's number as a share of 9; 0 for a verdict that is not one digit, as published."""
    found = re.fullmatch(r"\s*(\d)\s*", verdict or "")
    return {"share": int(found[1]) / 9 if found else 0.0, "parsed": found is not None}


SUITES = (
    Suite(
        name="SFE",
        domain="several sciences",
        metric="mean of a judge's marks, 0 to 9, in per cent of 9",
        metric_source="VLMEvalKit: dataset/sfebench.py (its judge is gpt-4o-1120; the judge's prompt here is our own)",
        where_data=images.where("SFE.tsv"),
        reported=52.7,
        read=read,
        score=score,
        summarise=mean_of("share"),
        judge=judge,
        modalities=("image",),
    ),
)
