"""The figures of the study (`tests.bench.study`) and their tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tests.bench.study_records import FORMS, TASKS, Question, Task
from trainer.evaluation.intervals import bootstrap, wilson
from trainer.evaluation.scorers.extract import numbers

Run = Mapping[str, Any]
OWN = {"raw": "template"}  # the form in which an arm's own training text asks; of the others "question"
COMPARED = (
    ("fluent", "raw"),
    ("mixture", "fluent"),
    ("mixture", "raw"),
    ("mixture, equal records", "fluent"),
)
UNREAD = 0.05  # share of answers without a number from which on a table says so


def rows_of(questions: Sequence[Question], answers: Sequence[str], task: Task, form: str) -> list[Mapping[str, Any]]:
    """Score each answer to the task in a form by its metric."""
    return [
        task.metric.one(task.parse(answer), question.answer)
        for question, answer in zip(questions, answers, strict=True)
        if question.task == (task.of or task.name) and question.form == form
    ]


def figures_of(questions: Sequence[Question], runs: Sequence[Run]) -> dict[str, Any]:
    """The score of every arm, kind of question and form, and the differences of arms.

    Shares are in per cent, errors in the task's unit. low, high: 95 % over the questions, of the mean over seeds:
    Wilson's for shares, with one trial for each question, and bootstrapped for errors and for differences. A difference
    is positive where the first arm is better; it is `better` or `worse` if its interval is on that side of 0 and so is
    every seed.
    """
    arms = dict.fromkeys(run["arm"] for run in runs)
    scores: dict[str, Any] = {}
    values: dict[tuple[str, str, str], list[list[float]]] = {}
    for arm in arms:
        of_arm = sorted((run for run in runs if run["arm"] == arm), key=lambda run: run["seed"])
        for task in TASKS:
            for form in FORMS:
                rows = [rows_of(questions, run["answers"], task, form) for run in of_arm]
                seeds = [[float(row["score"]) for row in some] for some in rows]
                values[arm, task.name, form] = seeds
                read = [bool(row.get("parsed", True)) for some in rows for row in some]
                scores.setdefault(task.name, {}).setdefault(form, {})[arm] = {
                    "seeds": [round(task.metric.combine(some).value, 3) for some in rows],
                    **interval(task, [fmean(item) for item in zip(*seeds, strict=True)]),
                    "unread": round(1 - fmean(read), 4),
                }
    return {
        "questions": {task.name: _count(questions, task) for task in TASKS},
        "constant": {task.name: constant(questions, task) for task in TASKS},
        "scores": scores,
        "differences": differences(values, [*arms]),
        "training": {
            f"{run['arm']}, seed {run['seed']}": {"loss": run["loss"], "cpu_seconds": run["cpu_seconds"]}
            for run in runs
        },
    }


def interval(task: Task, values: Sequence[float]) -> dict[str, float]:
    """The mean of one value for each question, with its interval."""
    if task.metric.higher:
        low, high = (100 * end for end in wilson(round(math.fsum(values)), len(values)))
        return {"mean": round(100 * fmean(values), 3), "low": round(low, 3), "high": round(high, 3)}
    found = bootstrap([[value] for value in values], fmean)
    return {"mean": round(fmean(values), 3), "low": round(found.low, 3), "high": round(found.high, 3)}


def constant(questions: Sequence[Question], task: Task) -> float:
    """The score of the better of two answers that are the same for every question: the most common one, and the mean
    number."""
    wanted = [question.answer for question in questions if _asks(question, task)]
    fixed = [Counter(wanted).most_common(1)[0][0]]
    if found := [number for reference in wanted for number in numbers(reference)]:
        fixed.append(f"<NUMBER> {fmean(found)} </NUMBER>")
    best = max if task.metric.higher else min
    return round(best(task.metric([answer] * len(wanted), wanted).value for answer in fixed), 3)


def differences(values: Mapping[tuple[str, str, str], list[list[float]]], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Compare the arms in COMPARED, each asked in its own form, and in the form that neither was trained on."""
    found = []
    for first, second in COMPARED:
        if first not in arms or second not in arms:
            continue
        for asked in ("own", "new"):
            for task in TASKS:
                forms = [OWN.get(arm, "question") if asked == "own" else "new" for arm in (first, second)]
                sign = 100 if task.metric.higher else -1
                pairs = zip(values[first, task.name, forms[0]], values[second, task.name, forms[1]], strict=True)
                seeds = [[sign * (a - b) for a, b in zip(one, other, strict=True)] for one, other in pairs]
                items = [[fmean(item)] for item in zip(*seeds, strict=True)]
                low, high = (lambda made: (made.low, made.high))(bootstrap(items, fmean))
                each = [fmean(some) for some in seeds]
                says = "unclear"
                if low > 0 and min(each) > 0:
                    says = "better"
                elif high < 0 and max(each) < 0:
                    says = "worse"
                found.append(
                    {
                        "first": first, "second": second, "asked": asked, "task": task.name,
                        "mean": round(fmean(each), 3), "low": round(low, 3), "high": round(high, 3),
                        "seeds": [round(one, 3) for one in each], "says": says,
                    }
                )  # fmt: skip
    return found


def _count(questions: Sequence[Question], task: Task) -> int:
    return sum(_asks(question, task) for question in questions)


def _asks(question: Question, task: Task) -> bool:
    """True for one question of each compound that the task scores."""
    return question.task == (task.of or task.name) and question.form == FORMS[0]


# ---- tables


def tables(figures: Mapping[str, Any]) -> list[str]:
    """The lines of docs/study.md that are made."""
    return ["", *read(figures), "", *scores(figures), "", *compared(figures), ""]


def read(figures: Mapping[str, Any]) -> list[str]:
    lines = [
        "| arm | tokens | of records | epochs of records | loss of the last step | CPU-seconds of training |",
        "|---|---|---|---|---|---|",
    ]
    for arm, one in figures["read"].items():
        runs = [run for name, run in figures["training"].items() if name.startswith(f"{arm}, seed")]
        losses = ", ".join(f"{run['loss']:.2f}" for run in runs)
        seconds = ", ".join(f"{run['cpu_seconds']['training']:,}" for run in runs)
        epochs = one["of_records"] / one["unique_of_records"]
        lines.append(f"| {arm} | {one['tokens']:,} | {one['of_records']:,} | {epochs:.1f} | {losses} | {seconds} |")
    return lines


def scores(figures: Mapping[str, Any]) -> list[str]:
    arms = [*figures["read"]]
    lines = [f"| question (number), metric | form | {' | '.join(arms)} | constant |", "|---" * (len(arms) + 3) + "|"]
    for task in TASKS:
        for form in FORMS:
            own = [form == OWN.get(arm, "question") for arm in arms]
            cells = [_cell(figures["scores"][task.name][form][arm]) for arm in arms]
            cells = [f"**{cell}**" if bold else cell for cell, bold in zip(cells, own, strict=True)]
            head = f"{task.name} ({figures['questions'][task.name]}), {task.unit}" if form == FORMS[0] else ""
            last = _short(figures["constant"][task.name]) if form == FORMS[0] else ""
            lines.append(f"| {head} | {form} | {' | '.join(cells)} | {last} |")
    return lines


def _cell(one: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(_short, one["seeds"]))
    unread = f", {one['unread']:.0%} unread" if one["unread"] > UNREAD else ""
    return f"{_short(one['mean'])} ({seeds}) [{_short(one['low'])}, {_short(one['high'])}]{unread}"


def _short(number: float) -> str:
    return f"{number:.1f}"


def compared(figures: Mapping[str, Any]) -> list[str]:
    pairs = [*dict.fromkeys((one["first"], one["second"]) for one in figures["differences"])]
    cells = {(one["task"], one["asked"], one["first"], one["second"]): one for one in figures["differences"]}
    heads = [f"{first} over {second}" for first, second in pairs]
    lines = [f"| question, unit | asked in | {' | '.join(heads)} |", "|---" * (len(pairs) + 2) + "|"]
    for task in TASKS:
        unit = "points" if task.metric.higher else task.unit.removeprefix("MAE, ")
        for asked, named in (("own", "own forms"), ("new", "new form")):
            row = [_difference(cells[task.name, asked, *pair]) for pair in pairs]
            lines.append(f"| {f'{task.name}, {unit}' if asked == 'own' else ''} | {named} | {' | '.join(row)} |")
    return lines


def _difference(one: Mapping[str, Any]) -> str:
    cell = f"{one['mean']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]"
    return cell if one["says"] == "unclear" else f"**{cell}**"
