"""The display of long work on stderr, for all commands."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from trainer.storage.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

BETWEEN = 5.0  # seconds between two lines where there is no terminal
REDRAW = 0.1  # seconds between two updates of a bar, as some work reports each of its records


class ProgressDisplay:
    """A bar for each stage on a terminal, elsewhere a line a few seconds apart; both with the speed and the time left.

    The bar is made at the first report: by then the workers are forked, and none of them inherits a part of its thread.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._bar: TaskID | None = None
        self._stage = ""
        self._started = self._reported = self._printed = time.perf_counter()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, state: Progress) -> None:
        now = time.perf_counter()
        new_stage = state.stage != self._stage
        if new_stage:
            self._stage, self._started = state.stage, self._reported
        self._reported = now
        if sys.stderr.isatty():
            if new_stage:
                self._add_bar(state)
            assert self._bars is not None
            assert self._bar is not None
            if new_stage or state.done >= state.total or now - self._printed >= REDRAW:
                self._printed = now
                self._bars.update(self._bar, completed=state.done, text=_text(state, now - self._started))
        elif now - self._printed >= BETWEEN and state.done < state.total:
            self._printed = now
            print(f"{state.stage}: {_text(state, now - self._started)}", file=sys.stderr, flush=True)

    def _add_bar(self, state: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bars is None:
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
            # rich would print the lines of standard output to this console, even if that goes to a file
            self._bars = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
            self._bars.start()
        self._bar = self._bars.add_task(state.stage, total=state.total, text="")


def duration(seconds: float) -> str:
    """Such as "90 s", "12 min" or "2 h 5 min"."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _text(state: Progress, seconds: float) -> str:
    """The amount, the speed of this start over the stage's `seconds`, and the time left."""
    parts = [state.amount]
    if state.made > 0:
        seconds = max(seconds, 1e-9)
        if state.tokens is not None or state.unit == "tokens":
            parts.append(f"{(state.made if state.tokens is None else state.tokens) / seconds:,.0f} tokens/s")
        elif state.unit == "bytes":
            parts.append(f"{state.made / seconds / 1e9:.2f} GB/s")
        parts.append(f"{duration((state.total - state.done) * seconds / state.made)} left")
    return ", ".join(filter(None, [*parts, state.detail]))
