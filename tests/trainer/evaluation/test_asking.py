"""The effect of a missing answer on a score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.evaluation.asked import SETTINGS, Answer, Failure, Question
from trainer.evaluation.asking import Outcome, open_ledger, run_suite
from trainer.evaluation.output.results import Result, result_of
from trainer.evaluation.suite import Item, Suite, mean_of

ITEMS = [Item(name, [{"role": "user", "content": name}]) for name in ("right", "wrong", "odd")]


class Known:
    """Answers each question with its own text, but for `missing`."""

    name, context = "known", None

    def __init__(self, missing: Failure | None = None) -> None:
        self.identity, self.missing = {"weights": "known"}, missing

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        for question in questions:
            text = question.messages[0]["content"]
            yield question, self.missing if text == "odd" and self.missing else Answer(text, "", "stop", 1, 1)


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    if answer == "odd":
        raise RuntimeError("of a library")
    return {"right": answer == "right", "parsed": bool(answer)}


SUITE = Suite("Known", "tests", "share, %", "these tests", "none", score=score, summarise=mean_of("right"))


def run(directory: Path, model: Known) -> tuple[Outcome, Result]:
    with open_ledger(directory) as ledger:
        outcome = run_suite(SUITE, ITEMS, model, SETTINGS["non_thinking"], ledger, lambda progress: None)
    return outcome, result_of(SUITE, outcome, len(ITEMS))


@pytest.mark.parametrize("missing", [None, Failure("beyond the context", final=True)])
def test_what_cannot_be_scored_counts_as_an_empty_answer(tmp_path: Path, missing: Failure | None) -> None:
    outcome, result = run(tmp_path, Known(missing))
    assert result["value"] == pytest.approx(100 / 3)
    assert [one.item.id for one in outcome.scored] == ["right", "wrong", "odd"]
    assert (list(outcome.empty), outcome.failures, result["empty"], result["unparsed"]) == (["odd"], {}, 1, 1)


def test_while_an_answer_is_missing_there_is_no_value(tmp_path: Path) -> None:
    outcome, result = run(tmp_path, Known(Failure("no answer in 9 s")))
    assert (list(outcome.failures), result["failures"], result["empty"]) == (["odd"], 1, 0)
    assert [result[name] for name in ("value", "low", "high")] == [None] * 3
    assert result["categories"] == {}
