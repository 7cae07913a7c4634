"""`octavo science --questions`: the questions of records whose reward accepts the record's own answer."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.corpora.science.questions import REWARD, question
from trainer.corpora.science.texts import Text
from trainer.rl.rewards.base import Question, RewardError, build_reward, close_reward

HELD_OUT_QUESTIONS = ".heldout.jsonl"  # beside OUT.jsonl
PACKAGES = ("pint", "rdkit")  # of the extra `rewards`: without one, its questions could not be checked


def graded(made: Iterable[Text], *, messages: bool) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of all texts that ask, and the questions by kind that cannot be graded: their reward refuses them or
    does not accept the record's own answer. Raises RewardError for a package that is not installed."""
    reward, rows, left_out = build_reward(REWARD, "--questions"), list[dict[str, Any]](), Counter[str]()
    try:
        for number, text in enumerate(made):
            row = question(text, messages=messages)
            if row is None:
                continue
            answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            asked = Question(number, "", row["answer"], row)
            try:
                right = all(reward(asked, f"\\boxed{{{answer}}}").value == 1 for answer in answers)
            except RewardError:
                right = False
            if right:
                rows.append(row)
            else:
                left_out[row["kind"]] += 1
    finally:
        close_reward(reward)
    return rows, left_out


def next_command(out: Path, heldout: Path) -> str:
    """The command that trains on the two files: recipe=rl_science names science.jsonl, others are given to it."""
    words = [f"data.root={out.parent}"]
    if out.name != "science.jsonl":
        words += [f"data.questions.science.path={out.name}", f"data.questions.science.heldout={heldout.name}"]
    return shlex.join(["octavo", "train", "recipe=rl_science", *words])
