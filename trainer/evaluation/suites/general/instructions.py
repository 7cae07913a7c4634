"""IFBench: prompts with constraints that code can check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.files import find_file, read_rows
from trainer.evaluation.scorers.instructions import follow
from trainer.evaluation.suite import Item, Scored, Suite, Summary, mean
from trainer.evaluation.suites.tasks import need_nltk, user

NAME = "IFBench"


def read(directory: Path) -> Iterator[Item]:
    """Rows of `IFBench_test.jsonl`: key, prompt, instruction_id_list, kwargs."""
    need_nltk(NAME, "punkt_tab", "averaged_perceptron_tagger_eng", "stopwords")
    path = find_file(directory, "IFBench_test.jsonl")
    for row in read_rows(path, "key", "prompt", "instruction_id_list", "kwargs"):
        names, given = row.texts("instruction_id_list"), row.value("kwargs")
        if unknown := [name for name in names if name not in follow.CHECKS]:
            what = f"the constraint {unknown[0]} is unknown"
            raise row.fault(what, value=unknown[0], allowed=tuple(follow.CHECKS))
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise row.wrong("kwargs", "a list of objects")
        if len(names) != len(given):
            raise row.fault(f"{len(names)} constraints have {len(given)} kwargs", value=len(given), allowed=len(names))
        yield Item(row.name("key"), user(row.text("prompt")), {"names": names, "given": given})


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    return follow.score(answer, item.reference["names"], item.reference["given"])


def summarise(scored: Sequence[Scored]) -> Summary:
    """Prompts whose constraints are all followed, in per cent; metrics: the loose count, and single constraints'."""
    rows = [one.values for one in scored]
    figures: dict[str, float] = {}
    for kind in ("strict", "loose"):
        figures[f"prompt_{kind}"] = mean([float(all(row[kind])) for row in rows]) * 100
        figures[f"constraint_{kind}"] = mean([float(one) for row in rows for one in row[kind]]) * 100
    value = figures.pop("prompt_strict")
    figures["mean_of_four"] = (value + sum(figures.values())) / 4
    groups: dict[str, list[float]] = {}
    for one in scored:
        for name, followed in zip(one.item.reference["names"], one.values["strict"], strict=True):
            groups.setdefault(name.partition(":")[0], []).append(float(followed))
    return Summary(value, figures, {group: mean(groups[group]) * 100 for group in sorted(groups)})


SUITES = (
    Suite(
        name=NAME,
        domain="instructions",
        metric="prompts whose constraints are all followed (strict), in per cent; OpenCompass's score, the mean of "
        "strict and loose over prompts and constraints, is `mean_of_four`. The report does not say which it gives",
        metric_source="allenai/IFBench; opencompass 0.5.4: datasets/IFBench/",
        where_data="IFBench_test.jsonl (allenai/IFBench, data/)",
        reported=71.2,
        read=read,
        score=score,
        summarise=summarise,
        packages=("nltk", "emoji", "syllapy"),
    ),
)
