"""The newest results of each suite among those of many evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from trainer.evaluation.output.results import RESULTS, read_results


class Found(NamedTuple):
    """directory: whose results.json has it. low, high: of the interval; None where it is not defined."""

    directory: Path
    value: float
    low: float | None
    high: float | None
    items: int


def newest_results(root: Path) -> dict[str, Found]:
    """By suite's folder, the value in the newest `DIR/results.json` under `root` that has one. Files that cannot be
    read, and suites without a value (as some answers are missing), are passed over."""
    files = [(path.stat().st_mtime, path) for path in root.glob(f"*/{RESULTS}")]
    found: dict[str, Found] = {}
    for _, path in sorted(files):
        for folder, result in read_results(path).get("suites", {}).items():
            value = _number(result, "value")
            if value is not None:
                items = int(_number(result, "items") or 0)
                found[folder] = Found(path.parent, value, _number(result, "low"), _number(result, "high"), items)
    return found


def _number(result: Any, name: str) -> float | None:
    value = result.get(name) if isinstance(result, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
