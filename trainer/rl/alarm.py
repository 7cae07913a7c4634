"""The alarm of a mismatch between rollouts and training that grows: mismatch/k3 against its own early steps.

Masks do not show it: the share of tokens that they leave out can stay flat while the engines drift apart (KPop, 2026,
on Ring-2.6-1T).

    limit    max(TIMES x the median of the first EARLY steps with trained tokens, the floor)
    floor    0 in exact arithmetic, which promises equal log-probabilities: any k3 is an alarm where the early median is
             0. Else FLOOR: of sums in another order alone, k3 is 1e-14 in fp32 and, where a number falls on the other
             side of a rounding to FP8, up to 2e-7 (docs/rl_mismatch.md), and both jump by more than TIMES.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

EARLY = 10
TIMES = 5.0
FLOOR = 1e-6
QUIET = 10  # steps at or below the limit in a row, after which the next one above it is reported again
K3, AGE = "mismatch/k3", "staleness/max"


class MismatchAlarm:
    """Follows K3 from the first step of a run on.

    floor: of the limit. fresh: leave out steps with tokens of older weights (`staleness/max`), whose k3 has the change
    of the weights in it. reports: lines for the log, with their steps, since they were last taken.
    """

    def __init__(self, floor: float = FLOOR, *, fresh: bool = False) -> None:
        self.floor, self.fresh = floor, fresh
        self.reports: list[tuple[int, str]] = []
        self._early: list[float] = []
        self._quiet = QUIET

    @classmethod
    def of_record(cls, path: Path, floor: float = FLOOR, *, fresh: bool = False) -> MismatchAlarm:
        """The alarm where a run's metrics.jsonl ends, so that a resumed run is compared with its own start."""
        found = cls(floor, fresh=fresh)
        if path.exists():
            found.follow(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        found.reports.clear()
        return found

    @property
    def median(self) -> float | None:
        """The median of the early steps; None before they are over."""
        return statistics.median(self._early) if len(self._early) == EARLY else None

    def follow(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Take lines of a record in their order; events among them say nothing."""
        for line in lines:
            if "event" not in line and K3 in line:
                self.fields(line)

    def fields(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a step's line: `mismatch/k3_early`, the median, and `mismatch/alarm`, 1 for a k3 above the limit
        and 0 for another; both None before there is a median, the alarm also for a step without trained tokens
        and for one that is left out."""
        median, k3 = self.median, line[K3]
        if self.fresh and line.get(AGE):
            k3 = None
        above = None if median is None or k3 is None else int(not float(k3) <= max(TIMES * median, self.floor))
        if k3 is not None and median is None and math.isfinite(float(k3)):
            self._early.append(float(k3))
        if above:
            assert median is not None
            if self._quiet >= QUIET:
                self.reports.append((line["step"], self._text(line["step"], float(k3), median)))
            self._quiet = 0
        elif above is not None:
            self._quiet += 1
        return {f"{K3}_early": median, "mismatch/alarm": above}

    def _text(self, step: int, k3: float, median: float) -> str:
        limit = max(TIMES * median, self.floor)
        return (
            f"step {step}: {K3} is {k3:.2g}, and the median of the first {EARLY} steps was {median:.2g} (the limit is "
            f"{limit:.2g}): rollouts and training drift apart, whatever share of the tokens is masked; compare the "
            "precision and the weights of both sides"
        )
