"""Suites made of tasks, each with a metric of its own, and a figure for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.evaluation.scorers.metric import Metric
from trainer.evaluation.suite import Item, Message, Score, Scored, SuiteError, Summarise, Summary, mean

Points = Callable[[float], float]
"""Turns a task's figure into points of 0 to 100."""


def user(text: str, *, system: str = "") -> list[Message]:
    """One user message of text, after a system message if `system` is not empty."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]


def with_images(text: str, *paths: str) -> list[Message]:
    """One user message: the images, then the text."""
    images = [{"type": "image_url", "image_url": {"url": path}} for path in paths]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def listed(options: Mapping[str, str]) -> str:
    """The options of a multiple choice, one a line: `A. text`."""
    return "".join(f"{letter}. {text}\n" for letter, text in options.items())


def score_by_task(metrics: Mapping[str, Metric]) -> Score:
    """A `Suite.score`: that of the metric of the item's meta `task`."""

    def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
        return metrics[item.meta["task"]].one(answer, item.reference)

    return score


def mean_of_tasks(metrics: Mapping[str, Metric], points: Mapping[str, Points] | None = None) -> Summarise:
    """A `Suite.summarise`: the mean of the tasks' points, each task counting once.

    points: of the tasks whose figure is not already in per cent. The categories are the tasks' figures in their own
    units; the metrics, named `TASK NAME`, their further figures.
    """

    def summarise(scored: Sequence[Scored]) -> Summary:
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for one in scored:
            rows.setdefault(one.item.meta["task"], []).append(one.values)
        figures = {task: metrics[task].combine(rows[task]) for task in metrics if task in rows}
        values = [(points or {}).get(task, float)(figure.value) for task, figure in figures.items()]
        further = {f"{task} {name}": value for task, figure in figures.items() for name, value in figure.extra.items()}
        return Summary(mean(values), further, {task: figure.value for task, figure in figures.items()})

    return summarise


def below(limit: float) -> Points:
    """Points of an error: 100 at 0, falling to 0 at `limit` and beyond."""
    return lambda error: max((limit - error) / limit, 0.0) * 100


def per_cent(value: float) -> float:
    """Points of a share of 0 to 1."""
    return value * 100


def need_nltk(suite: str, *data: str) -> None:
    """Raises SuiteError for nltk data that are not installed; nltk fetches them, and Octavo does not."""
    from nltk import data as installed

    kinds = {"punkt_tab": "tokenizers", "averaged_perceptron_tagger_eng": "taggers"}
    missing = []
    for name in data:
        try:
            installed.find(f"{kinds.get(name, 'corpora')}/{name}")
        except LookupError:
            try:
                installed.find(f"{kinds.get(name, 'corpora')}/{name}.zip")
            except LookupError:
                missing.append(name)
    if missing:
        remedy = f"python -m nltk.downloader {' '.join(missing)}"
        text = f"{suite} is scored with nltk's data {', '.join(missing)}, which are not installed: {remedy}"
        raise SuiteError(text, where=suite, value=missing, allowed=remedy)
