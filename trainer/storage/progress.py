"""Reports of long work, by the functions that do it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """The state of long work. `str` gives it as one line."""

    stage: str  # a word or two for the reader, such as "tokenizing"
    done: int = 0  # in `unit`, with `kept`
    total: int = 0  # in `unit`; 0: the stage is not counted
    unit: Literal["bytes", "tokens", "layers", "records", "answers", "documents"] = "bytes"
    kept: int = 0  # the part of `done` that an earlier start finished
    tokens: int | None = None  # made by this start, where the speed is in tokens but `unit` is not
    detail: str = ""  # more for the reader

    @property
    def made(self) -> int:
        """The part of `done` that this start finished."""
        return self.done - self.kept

    def __str__(self) -> str:
        return f"{self.stage}: {', '.join(filter(None, [self.amount, self.detail]))}"

    @property
    def amount(self) -> str:
        """`done`, `total` and the share, such as "0.5 of 2.0 GB (25.0%)"; "" where the stage is not counted."""
        if not self.total:
            return ""
        if self.unit == "bytes":
            counted = f"{self.done / 1e9:,.1f} of {self.total / 1e9:,.1f} GB"
        else:
            counted = f"{self.done:,} of {self.total:,} {self.unit}"
        return f"{counted} ({self.done / self.total:.1%})"


OnProgress = Callable[[Progress], None]


def ignore(state: Progress) -> None:
    """Report nothing."""


def print_line(state: Progress) -> None:
    """Print every report as a line on stderr."""
    print(state, file=sys.stderr, flush=True)
