"""MatBench's four tasks in text form, as OpenCompass 0.5.4 asks and scores them, with or without a judge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import find_file, read_rows
from trainer.evaluation.scorers import materials
from trainer.evaluation.suite import Item, Message, Scored, Suite, Summary
from trainer.evaluation.suites.tasks import mean_of_tasks, user

METRICS = {
    "matbench_expt_gap": materials.absolute_error,
    "matbench_steels": materials.absolute_error,
    "matbench_expt_is_metal": materials.agreement,
    "matbench_glass": materials.agreement,
}
POINTS = {
    "matbench_expt_gap": lambda error: (2 - error) / 2 * 100,
    "matbench_steels": lambda error: (2000 - error) / 2000 * 100,
    "matbench_expt_is_metal": lambda share: share * 100,
    "matbench_glass": lambda share: share * 100,
}
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+\.\d*|\d+")


def read(directory: Path) -> Iterator[Item]:
    """Rows of `matbench_base_fold_0_TASK_test.json`, with `problem` and `answer`."""
    for task, metric in METRICS.items():
        path = find_file(directory, f"matbench_base_fold_0_{task}_test.json")
        for row in read_rows(path, "problem", "answer"):
            labels = metric is materials.agreement
            answer = row.flag("answer") if labels else row.numeral("answer")
            form = "Answer yes or no only." if labels else "Answer with one number only."
            meta = {"task": task, "category": task}
            yield Item(f"{task}/{row.number}", user(f"{row.text('problem')} {form}"), answer, meta)


def judge(item: Item, answer: str) -> list[Message]:
    """Asks for A (agrees) or B (does not), and of the two regressions for the number that was answered."""
    question = item.messages[-1]["content"]
    if METRICS[item.meta["task"]] is materials.agreement:
        text = (
            "Does the answer below agree with the reference? Reply with one letter: A if it does and B if it does not."
            "\n\n"
            f"Question: {question}\nReference: {item.reference}\nAnswer: {answer}"
        )
    else:
        text = f"Reply with the final number that the answer below gives, as a decimal, and nothing else.\n\n{answer}"
    return user(text)


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    """By the judge's verdict where there is one, else by the published rules without a judge.

    As published (datasets/generic.py), the first capital A or B of a verdict counts, in a word too."""
    metric = METRICS[item.meta["task"]]
    values = metric.one(answer, item.reference)
    if verdict is None:
        return values
    if metric is materials.agreement:
        grade = re.search("[AB]", verdict)
        right = grade is not None and grade[0] == "A"
        return {**values, "score": right, "found": values["wanted"] == right, "parsed": grade is not None}
    number = _NUMBER.search(verdict)
    return {"score": abs(float(number[0] if number else 0) - float(item.reference)), "parsed": number is not None}


def summarise(scored: Sequence[Scored]) -> Summary:
    return mean_of_tasks(METRICS, POINTS)(scored)


SUITES = (
    Suite(
        name="MatBench",
        domain="materials",
        metric="mean of 4 tasks' points: accuracy in per cent, 100 (2 - MAE) / 2 for band gaps in eV, "
        "100 (2000 - MAE) / 2000 for yield strengths in MPa. Without a judge the published rules read every number "
        "from 20 on as 0, so steels need one",
        metric_source="opencompass 0.5.4: datasets/matbench/, summarizers/groups/matbench.py",
        where_data="matbench_base_fold_0_TASK_test.json of four tasks (opencompass/Matbench): " + ", ".join(METRICS),
        reported=72.8,
        read=read,
        score=score,
        summarise=summarise,
        judge=judge,
        judge_needed=False,
        packages=("scikit-learn",),
    ),
)
