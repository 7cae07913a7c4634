"""The record of a run: metrics.jsonl is the source of truth; the terminal line and wandb are views of it.

Every line of metrics.jsonl is one JSON object with "step". A line without "event" is an optimizer step; the last one
of each write also carries the rates measured since the write before: tokens_per_second, flops_per_second, peak_share
(where the peak is known) and peak_memory_bytes. FLOPs are those of the text model, without a head that is not
trained, and of the towers, which each step has as tower_flops. A line with "event" is anything else: an evaluation, a
warning.

JSON has no NaN or infinity. They are written as the strings "nan", "inf" and "-inf", which any JSON reader accepts and
Python's float() turns back into the number. A number that does not exist is null, such as the loss of a step without a
supervised token.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from parallel.errors import UserError
from trainer.config.errors import report
from trainer.config.keys import LoggingConfig
from trainer.metrics.console import LogRecord, PlainConsole, RichConsole
from trainer.metrics.rates import Rates, peak_memory
from trainer.metrics.wandb import Wandb
from trainer.storage.atomic import atomic_file


class View(Protocol):
    """Shows the record. No error in a view stops a run."""

    def advance(self, step: int, seconds_left: float) -> None: ...
    def during(self, what: str) -> None: ...
    def steps(self, records: list[LogRecord], seconds_left: float) -> None: ...
    def event(self, record: LogRecord) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Keeps RUN_DIR/metrics.jsonl and shows it on the terminal and in wandb. On ranks other than 0 it does nothing.

    resume_step: lines of an existing metrics.jsonl with a larger step are dropped, atomically, and so is a torn last
        line, so that the record of a resumed run is that of an uninterrupted one. 0 starts the record anew.
    flops_per_token: model FLOPs of training, forward and backward, for one token, without those of towers.
    peak_flops: FLOP/s of all devices of the run together (see device_peak), None where unknown: no share is shown then.
    config: the resolved configuration, for wandb.
    rank: None reads torchrun's RANK.

    Raises OSError where run_dir cannot be written at the start. Later on a full disk only warns: the lines are kept
    and written as soon as there is room.
    """

    def __init__(
        self,
        run_dir: Path,
        cfg: LoggingConfig,
        *,
        resume_step: int,
        total_steps: int,
        flops_per_token: float,
        peak_flops: float | None,
        config: Mapping[str, Any],
        rank: int | None = None,
    ) -> None:
        self._views: list[View] = []
        self._writes = os.environ.get("RANK", "0") == "0" if rank is None else rank == 0
        if not self._writes:
            return
        self._total_steps = total_steps
        self._rates = Rates(flops_per_token, peak_flops)
        self._step = resume_step
        self._file = JsonLines(run_dir / "metrics.jsonl", resume_step)

        if cfg.console != "off":
            rich = cfg.console == "rich" or (cfg.console == "auto" and sys.stdout.isatty())
            self._views.append(RichConsole(resume_step, total_steps, run_dir) if rich else PlainConsole(total_steps))
        if self._file.gap:
            self.event({"event": "warning", "message": self._file.gap})
        if self._file.torn:
            self.event({"event": "warning", "message": f"metrics.jsonl: dropped {self._file.torn} unreadable line(s)"})
        if cfg.wandb != "off":
            self._open_wandb(run_dir, cfg, config)

    def advance(self, step: int) -> None:
        """Move the bar to `step`, whose scalars may still be on the device. Records nothing and waits for nothing."""
        if not self._writes:
            return
        self._rates.count_step()
        seconds_left = self._rates.seconds_left(self._total_steps - step)
        self._show(lambda view: view.advance(step, seconds_left))

    def during(self, what: str) -> None:
        """Show `what` beside the bar until the next step: work during which the bar cannot move."""
        if self._writes:
            self._show(lambda view: view.during(what))

    def write(self, records: list[LogRecord]) -> None:
        """Append the steps since the last call, one dict each, in order: at least step and loss.

        Views show these if present: lr, grad_norm, balance, max_load (the busiest expert's load over the mean), skipped
        (steps skipped so far) and tokens (of that step over all ranks; the rates are computed from it, and from
        tower_flops, the model FLOPs of its images and signals).
        """
        if not self._writes or not records:
            return
        self._step = int(records[-1]["step"])
        tokens, towers = (sum(record.get(name, 0) for record in records) for name in ("tokens", "tower_flops"))
        rates = self._rates.measure(len(records), tokens, towers)
        records = [*records[:-1], {**records[-1], "peak_memory_bytes": peak_memory(), **rates}]
        if problem := self._file.append(records):
            self._warn(problem)
        seconds_left = self._rates.seconds_left(self._total_steps - self._step)
        self._show(lambda view: view.steps(records, seconds_left))

    def event(self, record: LogRecord, *, show: bool = True) -> None:
        """Append and show anything that is not a step: {"event": "evaluation", "loss": ...}.

        "step" defaults to the last one written. "seconds", if present, is the time that training waited for the event;
        the rates leave it out. Views show "message" as it is, other values by their names, long text below them.
        show: False where the terminal has the news already.
        """
        if not self._writes:
            return
        record = {"step": self._step, **record}
        self._rates.wait(float(record.get("seconds", 0.0)))
        if problem := self._file.append([record]):
            self._warn(problem)
        if show:
            self._show(lambda view: view.event(record))

    def seconds(self) -> float:
        """Seconds since the log was opened; 0 on other ranks."""
        return self._rates.seconds() if self._writes else 0.0

    def close(self) -> None:
        if not self._writes:
            return
        self._show(lambda view: view.close())  # may still have something to record
        self._writes = False
        if problem := self._file.close():
            report(UserError(problem, where=str(self._file.path), allowed="a disk with free space"))

    def _warn(self, message: str) -> None:
        record = {"step": self._step, "event": "warning", "message": message}
        self._show(lambda view: view.event(record))

    def _show(self, show: Callable[[View], None]) -> None:
        for view in list(self._views):
            try:
                show(view)
            except Exception as error:  # such as a closed terminal: the record continues without it
                self._views.remove(view)
                name = "wandb" if isinstance(view, Wandb) else "the terminal view"
                self.event({"event": "warning", "message": f"{name} is disabled from now on: {_one_line(error)}"})

    def _open_wandb(self, run_dir: Path, cfg: LoggingConfig, config: Mapping[str, Any]) -> None:
        try:
            view = Wandb(run_dir, cfg, config)
        except ImportError as error:
            message = f"logging.wandb={cfg.wandb} needs wandb: pip install -e '.[wandb]' ({_one_line(error)})"
            self.event({"event": "warning", "message": message + "; training continues without it"})
        except Exception as error:
            message = f"wandb did not start; training continues without it: {_one_line(error)}"
            self.event({"event": "warning", "message": message})
        else:
            self._views.append(view)
            if view.note:
                self.event({"event": "note", "message": view.note})


class JsonLines:
    """An append-only file of JSON lines that survives a kill at any byte and a disk that is full for a while."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        self.torn = 0  # unreadable lines dropped
        last = self._keep_until(resume_step) if path.exists() else 0
        self.gap: str | None = None  # a line about steps that the record has lost
        if last < resume_step:
            lost = f"steps {last + 1} to {resume_step}" if last + 1 < resume_step else f"step {resume_step}"
            why = "lacks" if last else "is missing or has no step, so the record lacks"
            self.gap = f"{path.name} {why} {lost}; it continues with step {resume_step + 1}"
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (lives as long as the run)
        self._good_size = os.path.getsize(path)
        self._pending = b""

    def _keep_until(self, resume_step: int) -> int:
        """Drop the lines of later steps, and those that cannot be read. Returns the last step that has a line."""
        kept: list[bytes] = []
        dropped = last = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
                keep = resume_step > 0 and line.endswith(b"\n") and record["step"] <= resume_step
            except (ValueError, KeyError, TypeError):
                keep = False
                self.torn += 1
            else:
                self.torn += not line.endswith(b"\n")
            if keep:
                kept.append(line)
                last = last if "event" in record else max(last, record["step"])
            else:
                dropped += 1
        if dropped:
            with atomic_file(self.path) as new:
                new.write_bytes(b"".join(kept))
        return last

    def append(self, records: list[LogRecord]) -> str | None:
        """Write the records and what could not be written before; returns what went wrong, once per trouble."""
        lines = "".join(json.dumps(_plain(record), allow_nan=False) + "\n" for record in records)
        in_trouble = bool(self._pending)
        self._pending += lines.encode()
        try:
            rest = memoryview(self._pending)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(self._good_size)  # no torn line in the middle
            if in_trouble:
                return None
            return f"cannot write {self.path}: {error.strerror}; its lines are kept until there is space"
        self._good_size += len(self._pending)
        self._pending = b""
        return None

    def close(self) -> str | None:
        self.append([])
        lost = self._pending.count(b"\n")
        self._file.close()
        return f"cannot write {self.path}: its last {lost} line(s) are lost" if lost else None


def _plain(value: Any) -> Any:
    """The value with non-finite floats as strings, and paths and numbers of other libraries as plain ones."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item"):  # numpy scalars, tensors of one element
        return _plain(value.item())
    return str(value)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
