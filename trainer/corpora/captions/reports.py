"""The account of a stage: all that came in, was passed on, and was dropped for which reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file

REPORT = "report.json"


@dataclass
class Count:
    """Things of one kind that a stage had to decide about: came == kept + everything in `dropped`."""

    came: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason

    def keep(self, count: int = 1) -> None:
        self.came += count
        self.kept += count

    def drop(self, reason: str, count: int = 1) -> None:
        self.came += count
        self.dropped[reason] += count

    def add(self, other: Count) -> None:
        self.came += other.came
        self.kept += other.kept
        self.dropped += other.dropped

    @property
    def balanced(self) -> bool:
        return self.came == self.kept + self.dropped.total()

    def to_json(self) -> dict[str, Any]:
        return {"in": self.came, "out": self.kept, "dropped": dict(sorted(self.dropped.items()))}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Count:
        return cls(found["in"], found["out"], Counter(found["dropped"]))


@dataclass
class StageReport:
    """The account of a finished stage.

    counts: by what is counted, such as "documents" and "crops". facts: other numbers, such as pages and bytes. lines:
    one for each input that could not be used. Seconds are left out: the report is the same however often a stage was
    interrupted.
    """

    stage: str
    counts: dict[str, Count]
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def write(self, directory: Path) -> None:
        """Write `report.json`, by which a stage is known to be finished. Raises AssertionError for counts that do not
        add up; OSError."""
        for name, count in self.counts.items():
            assert count.balanced, f"{self.stage}: {name}: {count}"
        counts = {name: count.to_json() for name, count in self.counts.items()}
        text = json.dumps({**asdict(self), "counts": counts}, indent=1, ensure_ascii=False)
        with atomic_file(directory / REPORT) as temporary:
            temporary.write_text(text + "\n")

    @classmethod
    def read(cls, directory: Path) -> StageReport | None:
        """The report of a directory; None where the stage is not finished. Raises DataError."""
        path = directory / REPORT
        try:
            found = json.loads(path.read_text())
            counts = {name: Count.from_json(count) for name, count in found["counts"].items()}
            return cls(found["stage"], counts, found["facts"], found["lines"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "remove it and run the stage again"
            raise DataError(f"{path} is corrupt ({error!r}); {remedy}", where=str(path), allowed=remedy) from error
