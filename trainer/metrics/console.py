"""The terminal view of a run: progress lines, plain or above a moving bar."""

import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.metrics.rates import peak_memory

LogRecord = dict[str, Any]

# What the progress line shows in a form of its own, or leaves to the record.
NAMED = {
    "step", "loss", "tokens_per_second", "flops_per_second", "peak_share", "peak_memory_bytes", "grad_norm", "max_load",
    "lr", "skipped", "tokens", "balance", "z",
}  # fmt: skip
SHOWN = {"reward/mean", "length/mean", "mismatch/max"}  # a policy step has dozens of names with a slash

FRAMES = 2  # a second, of the bar: a faster one takes time from a training step that owns every core
BAR = 16  # columns
ECHO = 3  # columns that a bar leaves free: a terminal prints ^C after it, and a line that wraps cannot be erased


class PlainConsole:
    """One line per write, for pipes, files and batch jobs."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps

    def advance(self, step: int, seconds_left: float) -> None:
        pass

    def during(self, what: str) -> None:
        pass

    def steps(self, records: list[LogRecord], seconds_left: float) -> None:
        print(progress_line(_summary(records), self._total_steps, seconds_left), flush=True)

    def event(self, record: LogRecord) -> None:
        print(event_text(record), flush=True)

    def close(self) -> None:
        pass


class RichConsole:
    """The same lines above a bar at the bottom of the terminal, which moves with every step and while one computes."""

    def __init__(self, resume_step: int, total_steps: int, run_dir: Path) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._total_steps, self._run_dir = total_steps, run_dir
        self._console = Console(highlight=False)
        text = TextColumn("{task.description}", markup=False)
        columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(BAR), TimeElapsedColumn(), text)
        self._progress = Progress(*columns, console=self._console, refresh_per_second=FRAMES, transient=True)
        self._task = self._progress.add_task("", total=total_steps, completed=resume_step)
        self._left, self._during, self._drawn = "", "the first step", -1.0
        self._describe()
        self._progress.start()

    def advance(self, step: int, seconds_left: float) -> None:
        self._left, self._during = f"{clock(seconds_left)} left", ""
        now = time.monotonic()
        if now - self._drawn > 0.5 / FRAMES:  # quick steps need not all be drawn
            self._drawn = now
            self._describe(step)

    def during(self, what: str) -> None:
        self._during = what
        self._describe()

    def steps(self, records: list[LogRecord], seconds_left: float) -> None:
        last = _summary(records)
        self._console.print(progress_line(last, self._total_steps, seconds_left), markup=False, soft_wrap=True)
        self._left = f"{clock(seconds_left)} left"
        self._describe(last["step"])

    def _describe(self, step: int | None = None) -> None:
        parts = [self._left, self._during, f"{peak_memory() / 2**30:.2f} GiB", str(self._run_dir)]
        text, before = " · ".join(filter(None, parts)), len(f"* /{self._total_steps} 00:00:00 ") + BAR + 1
        room = max(self._console.width - before - len(str(self._total_steps)) - ECHO, 0)
        text = text if len(text) <= room else text[: max(room - 1, 0)] + "…"
        self._progress.update(self._task, completed=step, description=text)

    def event(self, record: LogRecord) -> None:
        style = {"warning": "yellow", "error": "red"}.get(record["event"], "cyan")
        self._console.print(event_text(record), style=style, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def _summary(records: list[LogRecord]) -> LogRecord:
    """The last step, with the mean loss of all `records` that have one: single steps fluctuate."""
    losses = [record["loss"] for record in records if record["loss"] is not None]
    return {**records[-1], "loss": sum(losses) / len(losses) if losses else None}


def progress_line(record: LogRecord, total_steps: int, seconds_left: float) -> str:
    """The progress line: the parts that the record has, in a fixed order, and an objective's own scalars by name."""
    loss = "no loss" if record["loss"] is None else f"loss {record['loss']:.4f}"
    parts = [f"step {record['step']:>{len(str(total_steps))}}/{total_steps}", loss]
    others = {name: value for name, value in record.items() if _has_place(name) and isinstance(value, float)}
    parts += [f"{name} {value:.3f}" for name, value in others.items()]
    if (rate := record.get("tokens_per_second")) is not None:
        parts.append(f"{rate:,.0f} tok/s")
    if (flops := record.get("flops_per_second")) is not None:
        share = record.get("peak_share")
        parts.append(f"{_scaled(flops)}FLOP/s" + (f" ({share:.1%} of peak)" if share is not None else ""))
    if memory := record.get("peak_memory_bytes"):
        parts.append(f"{memory / 2**30:.2f} GiB")
    if (norm := record.get("grad_norm")) is not None:
        parts.append(f"|g| {norm:.3f}")
    if (load := record.get("max_load")) is not None:
        parts.append(f"busiest expert {load:.2f}x")
    if (rate := record.get("lr")) is not None:
        parts.append(f"lr {rate:.2e}")
    if skipped := record.get("skipped"):
        parts.append(f"skipped {skipped:g}")
    return " · ".join([*parts, f"{clock(seconds_left)} left"])


def _has_place(name: str) -> bool:
    return name in SHOWN if "/" in name else name not in NAMED


def event_text(record: LogRecord) -> str:
    """One line, `step 20 · evaluation: loss 5.1 · ...`, then any long text below, indented."""
    shown: list[str] = []
    below: list[str] = []
    for key, value in record.items():
        if key in ("event", "step"):
            continue
        if key == "message":
            shown.insert(0, str(value))
        elif key == "text":  # a sample
            below.append(textwrap.indent(value.rstrip(), "    "))
        elif isinstance(value, str) and ("\n" in value or len(value) > 80):
            below += [f"{key}:", textwrap.indent(value.rstrip(), "    ")]
        elif isinstance(value, Mapping):
            shown += [f"{key} {name} {_short(number)}" for name, number in value.items()]
        elif key.endswith("_bytes"):
            shown.append(f"{key.removesuffix('_bytes')} {value / 2**20:,.1f} MiB")
        elif key.endswith("seconds"):
            shown.append(f"{value:.1f} s")
        else:
            shown.append(f"{key} {_short(value)}")
    return "\n".join([f"step {record['step']} · {record['event']}: {' · '.join(shown)}", *below])


def _short(value: Any) -> str:
    return "no value" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _scaled(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} P"


def clock(seconds: float) -> str:
    """Such as 4:05 (minutes), 1:02:05 or 3d04h."""
    whole = round(max(seconds, 0))
    hours, minutes = divmod(whole // 60, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02}h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
