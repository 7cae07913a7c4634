"""The contract of a suite: how a benchmark's files become questions, answers become scores, and scores become results.

To add a benchmark, write a module in `trainer/evaluation/suites/` that defines

    SUITES = (Suite(name="MMLU-Pro", domain="general", ..., read=read, score=score, summarise=mean_of("correct")),)

and name the module in `trainer/evaluation/registry.py`. Everything else (asking the model, resuming, the judge,
confidence intervals, files of results) is the same for all suites. What a suite does:

1. `read(directory)` yields an `Item` for each question of the files in `directory`, which is DIR/FOLDER of
   `octavo evaluate --data DIR` (`Suite.folder`). It checks the files (`trainer.evaluation.files` has readers that do)
   and raises `SuiteError`, which names the file and what would work. Items come in the same order each time.
2. The model answers `Item.messages`, `Suite.repeats` times with different seeds.
3. With `judge`, `judge(item, answer)` makes the messages for the judge model; None: this answer needs no judgement.
4. `score(item, answer, verdict)` returns JSON values by name for one answer: numbers, and whatever `summarise` needs of
   it, such as a label, a parsed text or None. It never raises for a wrong or unreadable answer: that is a score of 0.
   The name "parsed" is special: False counts the answer as one in which nothing was found to score.
5. `summarise(scored)` makes the `Summary` of all answers. It is called again on resampled answers for the confidence
   interval (some items then appear twice, others not at all), so it must not depend on ids or on the number of answers,
   and must return NaN where the metric is undefined for a sample.

Libraries that are not among Octavo's dependencies are imported inside these functions and named in `Suite.packages`.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parallel.errors import UserError

Message = dict[str, Any]
"""A message of OpenAI's chat form: `{"role": "user", "content": TEXT or PARTS}`. The parts are

    {"type": "text", "text": "..."}
    {"type": "image_url", "image_url": {"url": "/absolute/path.png"}}
    {"type": "time_series_url", "time_series_url": {"url": "/absolute/path.npy", "sampling_rate": 100}}

with absolute paths of local files; the client turns these into what its model takes."""

Read = Callable[[Path], Iterator["Item"]]
Judge = Callable[["Item", str], "list[Message] | None"]
Score = Callable[["Item", str, "str | None"], dict[str, Any]]
Summarise = Callable[[Sequence["Scored"]], "Summary"]


class SuiteError(UserError):
    """A benchmark that cannot be run: `where` is the file, the suite or the option."""


@dataclass(frozen=True)
class Item:
    """One question.

    id: unique in its suite, the same in every run. messages: without the answer. reference: what `score` compares with;
    JSON. meta: JSON; "category" and "task" are names that `summarise` may group by, "options" the choices of a multiple
    choice.
    """

    id: str
    messages: Sequence[Message]
    reference: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """One answer of `item`: its text without the thinking part, and what `Suite.score` returned."""

    item: Item
    answer: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """value: the metric that the report gives, in the report's unit (per cent: 0 to 100). metrics: others by name.
    categories: the metric of parts of the suite (tasks, subjects), by name. NaN where undefined."""

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, float] = field(default_factory=dict)


def _nothing(directory: Path) -> Iterator[Item]:
    raise SuiteError("this suite is run by its own harness", where=str(directory), allowed="the command of its harness")


@dataclass(frozen=True, eq=False)
class Suite:
    """A benchmark.

    name: as in the report. domain: such as "chemistry". metric: in a few words, with its unit. metric_source: the URL,
    paper or package whose scorer `score` and `summarise` follow. where_data: which files go where under DIR/FOLDER, and
    where they come from. reported: the report's figure for Intern-S1-Pro, None where the report has none.
    reported_parts: the same by category. judge: the messages for the judge model; None: no judge. judge_needed: False:
    without --judge, `score` gets None as the verdict and decides by itself. repeats: answers to each item. higher:
    False for errors such as RMSE. packages: distributions that `score` and `summarise` import. modalities: what the
    items have beside text. harness: the documented command of a suite that its own harness runs, which has no `read`.
    """

    name: str
    domain: str
    metric: str
    metric_source: str
    where_data: str
    reported: float | None = None
    reported_parts: Mapping[str, float] = field(default_factory=dict)
    read: Read = _nothing
    score: Score = lambda item, answer, verdict: {}
    summarise: Summarise = lambda scored: Summary(math.nan)
    judge: Judge | None = None
    judge_needed: bool = True
    repeats: int = 1
    higher: bool = True
    packages: tuple[str, ...] = ()
    modalities: tuple[Literal["image", "signal"], ...] = ()
    harness: str = ""

    @property
    def folder(self) -> str:
        """The name in small letters and underscores: of the directory of its files, and on the command line."""
        return folder_of(self.name)

    def require_packages(self) -> None:
        """Raises SuiteError for packages that are not installed."""
        missing = [name for name in self.packages if not _is_installed(name)]
        if missing:
            remedy = f"pip install -e '.[{'evaluate,media' if 'image' in self.modalities else 'evaluate'}]'"
            text = f"{self.name} is scored with {', '.join(missing)}, which is not installed: {remedy}"
            raise SuiteError(text, where=self.name, value=missing, allowed=remedy)


def folder_of(name: str) -> str:
    """A suite's name in small letters, with underscores for all else: "MMLU-Pro" -> "mmlu_pro"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@dataclass(frozen=True)
class Mean:
    """A `summarise`: the mean of the score `name` times `unit`, in all and for each value of the item's meta `by`.

    The confidence interval is Wilson's where all scores are 0 or 1, else the normal one: no resampling."""

    name: str
    unit: float = 100.0
    by: str = "category"

    def __call__(self, scored: Sequence[Scored]) -> Summary:
        values = [float(one.values[self.name]) for one in scored]
        parts: dict[str, list[float]] = {}
        for one, value in zip(scored, values, strict=True):
            if self.by in one.item.meta:
                parts.setdefault(str(one.item.meta[self.by]), []).append(value)
        categories = {part: mean(parts[part]) * self.unit for part in sorted(parts)}
        return Summary(mean(values) * self.unit, categories=categories)


def mean_of(name: str, *, unit: float = 100.0, by: str = "category") -> Mean:
    """`Mean(name, unit, by)`."""
    return Mean(name, unit, by)


def mean(values: Sequence[float]) -> float:
    """The mean, in a sum without rounding errors; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
