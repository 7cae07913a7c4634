"""The results of suites: metrics with their intervals, and the files that keep them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.evaluation.asked import Settings
from trainer.evaluation.asking import Outcome
from trainer.evaluation.intervals import Interval, bootstrap, of_mean
from trainer.evaluation.suite import Mean, Scored, Suite, Summary, mean
from trainer.storage.atomic import atomic_file

RESULTS, PAGE = "results.json", "results.html"
Result = dict[str, Any]


def result_of(suite: Suite, outcome: Outcome, items: int) -> Result:
    """The result of a suite as JSON; what is undefined is None. items: that were asked.

    While there are failures no figure is defined: those of the other items are of another, perhaps easier, benchmark.
    """
    whole = bool(outcome.scored) and not outcome.failures
    summary = suite.summarise(outcome.scored) if whole else Summary(math.nan)
    interval = _interval(suite, outcome.scored if whole else ())
    return {
        "name": suite.name,
        "domain": suite.domain,
        "metric": suite.metric,
        "metric_source": suite.metric_source,
        "higher_is_better": suite.higher,
        "value": _number(summary.value),
        "low": _number(interval.low),
        "high": _number(interval.high),
        "interval": f"95 %, {interval.method}",
        "reported": suite.reported,
        "metrics": {name: _number(value) for name, value in summary.metrics.items()},
        "categories": {
            name: {"value": _number(value), "reported": suite.reported_parts.get(name)}
            for name, value in summary.categories.items()
        },
        "items": items,
        "answers": len(outcome.scored),
        "failures": len(outcome.failures),
        "failed": dict(list(outcome.failures.items())[:20]),
        "empty": len(outcome.empty),
        "scored_as_empty": dict(list(outcome.empty.items())[:20]),
        "left_out": len(outcome.left_out),
        "without": dict(list(outcome.left_out.items())[:20]),
        "truncated": outcome.truncated,
        "unparsed": sum(one.values.get("parsed") is False for one in outcome.scored),
        "answer_tokens": outcome.tokens,
    }


def _interval(suite: Suite, scored: Sequence[Scored]) -> Interval:
    by_item: dict[str, list[Scored]] = {}
    for one in scored:
        by_item.setdefault(one.item.id, []).append(one)
    groups = list(by_item.values())
    if isinstance(suite.summarise, Mean):
        name, unit = suite.summarise.name, suite.summarise.unit
        values = [mean([float(one.values[name]) for one in group]) for group in groups]
        return of_mean(values, unit, several=any(len(group) > 1 for group in groups))
    return bootstrap(groups, lambda sample: suite.summarise(sample).value)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_results(
    directory: Path, model: Mapping[str, Any], settings: Settings, results: Mapping[str, Result]
) -> Mapping[str, Any]:
    """Write results.json and results.html, by suites' folders. Results of other suites that are in the file stay, if
    they are of the same model and settings. Returns what the file has."""
    from trainer.evaluation.output.page import page

    facts = {"model": dict(model), "settings": asdict(settings)}
    before = read_results(directory / RESULTS)
    same = all(before.get(name) == json.loads(json.dumps(fact)) for name, fact in facts.items())
    content = {**facts, "suites": {**(before["suites"] if same else {}), **results}}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, written in ((RESULTS, text), (PAGE, page(content))):
        with atomic_file(directory / name) as temporary:
            temporary.write_text(written, encoding="utf-8")
    return content


def write_scored(directory: Path, suite: Suite, scored: Sequence[Scored]) -> Path:
    """Write FOLDER.scored.jsonl: every answer with its reference and its scores."""
    path = directory / f"{suite.folder}.scored.jsonl"
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for one in scored:
            row = {"id": one.item.id, **one.item.meta, "reference": one.item.reference, "answer": one.answer,
                   "scores": dict(one.values)}  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return path


def read_results(path: Path) -> dict[str, Any]:
    """The results that are there; nothing where they cannot be read: they are written anew from the ledger."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("suites"), dict) else {}
