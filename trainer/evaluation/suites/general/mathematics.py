"""AIME-2025 and IMO-Answer-Bench: final answers, compared by math-verify, or by a judge where there is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.evaluation.files import find_file, find_files, read_rows
from trainer.evaluation.scorers.mathematics.verify import MODULE, equal
from trainer.evaluation.scorers.worker import Worker
from trainer.evaluation.suite import Item, Message, Suite, mean_of
from trainer.evaluation.suites.tasks import user

_FORM = r"Reason step by step, and put the final answer in \boxed{}."
WORKER = Worker(MODULE)


def read_aime(directory: Path) -> Iterator[Item]:
    """Rows with `problem` or `question`, and `answer`: a whole number from 0 to 999."""
    names = ("aime2025*.jsonl", "test*.jsonl", "test*.parquet", "train*.parquet", "*.json")
    for path in find_files(directory, *names):
        for row in read_rows(path, "answer"):
            text = row.text("problem" if "problem" in row.cells else "question")
            answer = row.name("answer").strip()
            if not re.fullmatch(r"\d{1,3}", answer):
                raise row.wrong("answer", "a whole number from 0 to 999")
            yield Item(f"{path.stem}/{row.number}", user(f"{text}\n{_FORM}"), answer)


def read_imo(directory: Path) -> Iterator[Item]:
    """Rows of `answerbench*.csv`: Problem ID, Problem, Short Answer, Category."""
    path = find_file(directory, "answerbench_v2.csv", "answerbench*.csv", "*.parquet")
    for row in read_rows(path, "Problem ID", "Problem", "Short Answer", "Category"):
        text, meta = f"{row.text('Problem')}\n{_FORM}", {"category": row.text("Category")}
        yield Item(row.name("Problem ID"), user(text), row.name("Short Answer"), meta)


def judge(item: Item, answer: str) -> list[Message]:
    return user(
        "Is the final answer of the solution below the same as the reference? Compare the mathematical meaning and not "
        "the form; an answer that is missing, partial or one of several is not the same. Reply A if it is the same and "
        f"B if it is not.\n\nProblem: {item.messages[-1]['content']}\nReference: {item.reference}\nSolution: {answer}"
    )


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    """By the judge's last A or B where there is one; else the last expression of the answer equals the reference."""
    if verdict is not None:
        grades = re.findall(r"\b[AB]\b", verdict)  # alone: "Answer: B" has an A of no meaning
        return {"correct": grades[-1:] == ["A"], "parsed": bool(grades)}
    same = equal(WORKER, answer, item.reference)
    return {"correct": bool(same), "parsed": same is not None}


SUITES = (
    Suite(
        name="AIME-2025",
        domain="mathematics",
        metric="right final answers in per cent, mean over 8 answers to each problem where they are drawn, one where "
        "they are greedy (the report does not say how many)",
        metric_source="math-verify (a process of its own, 10 seconds an answer)",
        where_data="aime2025-I.jsonl and aime2025-II.jsonl (opencompass/AIME2025), or test.jsonl (math-ai/aime25)",
        reported=93.1,
        read=read_aime,
        score=score,
        summarise=mean_of("correct"),
        repeats=8,
        packages=("math-verify",),
    ),
    Suite(
        name="IMO-Answer-Bench",
        domain="mathematics",
        metric="right final answers in per cent; math-verify decides without --judge. The published grader is a judge "
        "model with a prompt of its own",
        metric_source="google-deepmind/superhuman, imobench (AnswerAutoGrader); math-verify",
        where_data="answerbench_v2.csv (google-deepmind/superhuman, imobench/)",
        reported=77.3,
        read=read_imo,
        score=score,
        summarise=mean_of("correct"),
        judge=judge,
        judge_needed=False,
        packages=("math-verify",),
    ),
)
