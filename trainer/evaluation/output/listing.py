"""The suites in a list for the terminal, or in a table for a document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from trainer.evaluation.output.newest import Found
from trainer.evaluation.output.page import shown
from trainer.evaluation.suite import Suite

COLUMNS = ("suite", "domain", "metric", "metric's source", "files in DIR/NAME", "judge", "Intern-S1-Pro")
NO_FIGURE = "unknown"
NOTHING: Mapping[str, Found] = MappingProxyType({})


def listing(suites: Iterable[Suite], found: Mapping[str, Found] = NOTHING, *, markdown: bool = False) -> str:
    """Each suite with its name on the command line, domain, metric and its source, files, judge, reported figure, and
    what runs it where that is not Octavo.

    found: results of one's own by suites' folders, beside the reported figures; a table, which is the same wherever it
    is made, leaves them out."""
    return _table(suites) if markdown else "\n".join(_entry(suite, found.get(suite.folder)) for suite in suites)


def _judge(suite: Suite) -> str:
    if suite.judge is None:
        return "no"
    return "needed" if suite.judge_needed else "used if given"


def _figure(suite: Suite) -> str:
    parts = ", ".join(f"{name} {value:g}" for name, value in suite.reported_parts.items())
    whole = "" if suite.reported is None else f"{suite.reported:g}"
    return "; ".join(filter(None, [whole, parts])) or NO_FIGURE


def _own(found: Found) -> str:
    interval = "" if found.low is None or found.high is None else f" [{shown(found.low)}, {shown(found.high)}]"
    return f"{shown(found.value)}{interval}, {found.items:,} items; {found.directory}"


def _entry(suite: Suite, found: Found | None) -> str:
    lines = [
        f"{suite.folder}  ({suite.name}; {suite.domain})",
        f"  metric         {suite.metric}; {suite.metric_source}",
        f"  files          {suite.where_data}" if not suite.harness else f"  run by         {suite.harness}",
        f"  judge          {_judge(suite)}",
        f"  Intern-S1-Pro  {_figure(suite)}",
    ]
    if found is not None:
        lines.append(f"  own            {_own(found)}")
    return "\n".join(lines) + "\n"


def _table(suites: Iterable[Suite]) -> str:
    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"

    text = row(COLUMNS) + row("---" for _ in COLUMNS)
    for suite in suites:
        files = f"run by `{suite.harness}`" if suite.harness else suite.where_data
        text += row([f"`{suite.folder}`", suite.domain, suite.metric, suite.metric_source, files, _judge(suite),
                     _figure(suite)])  # fmt: skip
    return text
