"""SciTS: questions about recorded signals of twelve sciences; the tasks of understanding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, find_files, read_rows
from trainer.evaluation.scorers import signals
from trainer.evaluation.suite import Item, Scored, Suite, SuiteError, Summary, mean

_CODE = re.compile(r"\b([A-Z]{2}[UG]\d{2})(?![0-9A-Za-z])")
# where the task's code is looked for; the card shows the fields only in part
_NAMED = ("task_id", "uid", "id", "scene", "dataset_name")
TASKS = ("ASU01", "ASU03", "BIU01", "BIU03", "EAU01", "MEU01", "NEU06", "PHU01", "PHU04")
"""Tasks that the report gives; others in the files are asked and scored as well."""


def read(directory: Path) -> Iterator[Item]:
    """Rows of `meta_data.jsonl`, or of one .jsonl a task: id, task, dataset_name, input_text, input_ts, gt_result.

    Tasks of generation, such as ASG01, are passed over. `input_text` may be a list of wordings: the first is asked.
    """
    for path in find_files(directory, "meta_data.jsonl", "*.jsonl"):
        for row in read_rows(path, "id", "task", "input_text", "input_ts", "gt_result"):
            code = code_of(row)
            if code[2] == "U":
                yield _item(directory, row, code)


def code_of(row: Row) -> str:
    for text in (*(str(row.cells.get(name, "")) for name in _NAMED), row.path.stem):
        if found := _CODE.search(text.replace("_", " ")):
            return found[1]
    what = f"no task such as {TASKS[0]} is named in {', '.join(_NAMED)} or by the file"
    raise row.fault(what, value={name: row.cells.get(name) for name in _NAMED}, allowed=TASKS)


def _item(directory: Path, row: Row, code: str) -> Item:
    result, data_set = row.mapping("gt_result"), row.text("dataset_name", missing="")
    kind = "classes" if "answer" in result or "gt_class" in result else "events"
    if kind == "events" and not isinstance(result.get("contain"), bool):
        what = "gt_result has neither answer nor gt_class, nor contain as true or false"
        raise row.fault(what, value=result, allowed=("answer", "gt_class", "contain"))
    if kind == "events" and data_set not in signals.EVENTS:
        what = f"dataset_name={data_set} has no words for events"
        raise row.fault(what, value=data_set, allowed=tuple(signals.EVENTS))
    signal = row.cells["input_ts"]
    signal = row.mapping("input_ts") if isinstance(signal, dict) else {"path": row.text("input_ts")}
    if not isinstance(signal.get("path"), str):
        raise row.wrong("input_ts", "an object with the path of a file")
    file = directory.absolute() / signal["path"]
    if not file.is_file():
        text = f"{file}: there is no such file; {row.path}:{row.number} names it"
        raise SuiteError(text, where=str(file), allowed="the signals of OpenTSLab/SciTS")
    url: dict[str, Any] = {"url": str(file)}
    if rate := signal.get("sampling_rate") or row.value("sampling_rate"):
        url["sampling_rate"] = rate
    several = isinstance(row.cells["input_text"], list)
    wording = row.texts("input_text")[0] if several else row.text("input_text")
    parts = [{"type": "time_series_url", "time_series_url": url}, {"type": "text", "text": wording}]
    meta = {"task": code, "category": code, "kind": kind, "data_set": data_set}
    return Item(f"{code}/{row.name('id')}", [{"role": "user", "content": parts}], dict(result), meta)


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    """Right or not, of this answer alone; `summarise` reads the answers again, because F1 needs all labels."""
    if item.meta["kind"] == "events":
        found = signals.event(answer, item.meta["data_set"])
        return {"correct": found == bool(item.reference["contain"]), "parsed": found is not None}
    low = answer.lower()
    named = [label in low for labels in signals.labels_of(item.reference).values() for label in labels]
    return {"correct": all(named), "parsed": any(named)}


def summarise(scored: Sequence[Scored]) -> Summary:
    """The mean over the tasks of F1 in per cent; metrics: accuracies and what else the tasks have."""
    tasks: dict[str, list[Scored]] = {}
    for one in scored:
        tasks.setdefault(one.item.meta["task"], []).append(one)
    scores: dict[str, float] = {}
    further: dict[str, float] = {}
    for task, rows in sorted(tasks.items()):
        answers, results = [one.answer for one in rows], [one.item.reference for one in rows]
        if rows[0].item.meta["kind"] == "events":
            figures = {"": signals.events(answers, results, rows[0].item.meta["data_set"])}
        else:
            figures = signals.classes(answers, results)
        scores[task] = mean([figure.extra["f1"] for figure in figures.values()]) * 100
        for key, figure in figures.items():
            name = task if key in ("", "default", "answer") else f"{task} {key}"
            further[f"{name} accuracy"] = figure.value * 100
            further |= {f"{name} {extra}": value * 100 for extra, value in figure.extra.items() if extra != "f1"}
    return Summary(mean(list(scores.values())), further, scores)


SUITES = (
    Suite(
        name="SciTS",
        domain="several sciences",
        metric="F1 in per cent, averaged over the tasks in the files; accuracies beside it. The report does not say "
        "which it gives for which task",
        metric_source="OpenTSLab/TimeOmni, eval_benchmark.py",
        where_data="meta_data.jsonl and the signals that it names (OpenTSLab/SciTS on Hugging Face); the report gives "
        + ", ".join(TASKS),
        read=read,
        score=score,
        summarise=summarise,
        modalities=("signal",),
    ),
)
