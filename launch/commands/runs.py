"""`octavo runs`: the runs in a directory, with their state and results, or the comparison of two."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from trainer.config import coerce
from trainer.config.command_line import Parser
from trainer.config.errors import CommandError
from trainer.config.keys import BEFORE, Config
from trainer.config.run_files import CONFIG_FILE
from trainer.config.say import show
from trainer.metrics.history import RECENT, RECORD, Tail, mean, read_tail
from trainer.run.directory import LOCK_FILE, last_step
from trainer.storage.lock import holder

State = Literal["running", "finished", "stopped", "failed"]
NO_END = "its record does not say how it ended: killed, or lost with its machine"
HELDOUT = "heldout"
COLUMNS = ("run", "recipe", "state", "step", "loss", "held-out", "size", "age")
AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
# The reader in C is ten times as fast, where PyYAML was built with it.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotARunError(Exception):
    """A directory that is not a run's, or whose configuration cannot be read; the text says why."""


@dataclass(frozen=True)
class Run:
    """A run as its directory shows it.

    step, heldout: of the last lines of its record that have them. loss: the mean of its last steps, as a run prints it
    at its end. saved: step of the newest checkpoint. steps:
    train.steps. age: seconds since the record grew. message: how the run ended, or which process holds it.
    """

    path: str
    recipe: str
    state: State
    step: int
    steps: int
    saved: int
    loss: float | None
    heldout: dict[str, float]
    evaluated: int
    size_bytes: int
    age_seconds: float
    message: str
    config: dict[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All fields but the configuration, and the mean of `heldout`."""
        values = asdict(self)
        del values["config"]
        return {**values, "heldout_mean": mean(self.heldout)}


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`."""
    add = parser.add_argument
    add("directories", nargs="*", default=[], metavar="DIR", help="a directory of runs (default: runs), or two runs")
    add("--json", action="store_true", help="print JSON, with all figures unrounded")
    options = parser.read(words)
    given = [Path(directory) for directory in options.directories or ["runs"]]
    if len(given) > 2:
        remedy = "one directory of runs, or two runs to compare"
        raise CommandError(f"octavo runs: {len(given)} directories; give {remedy}", where="DIR", allowed=remedy)
    for path in given:
        if not path.is_dir():
            remedy = "a directory that contains runs; `octavo train` creates them in runs/"
            text = f"{path}: {'not a directory' if path.exists() else 'no such directory'}; give {remedy}"
            raise CommandError(text, where=str(path), allowed=remedy)
    if len(given) == 1:
        return partial(_list, given[0], options.json)
    try:
        first, second = (read_run(path) for path in given)
    except NotARunError as problem:
        remedy = "two run directories"
        raise CommandError(f"{problem}; give {remedy}", where="DIR", value=str(problem), allowed=remedy) from None
    return partial(_compare, first, second, options.json)


def read_run(path: Path) -> Run:
    """Raises `NotARunError`."""
    config = _read_config(path / CONFIG_FILE)
    name, steps = (config.get(key) for key in ("run.name", "train.steps"))
    if not isinstance(name, str) or not isinstance(steps, int):
        raise NotARunError(f"{path}: {CONFIG_FILE} has no run.name or no train.steps")
    try:
        tail, grown = read_tail(path / RECORD), (path / RECORD).stat().st_mtime
    except FileNotFoundError:
        tail, grown = Tail(message="it has no record: it ended before its first step"), path.stat().st_mtime
    except OSError as error:
        raise NotARunError(f"{path}: {RECORD} cannot be read ({error.strerror})") from None
    try:
        owner, saved = holder(path / LOCK_FILE), last_step(path)
    except OSError as error:
        raise NotARunError(f"{path}: {LOCK_FILE} cannot be read ({error.strerror})") from None
    state: State = "failed"
    message = tail.message if tail.ending or not tail.step else NO_END
    if owner is not None:
        state, message = "running", owner
    elif saved >= steps:
        state = "finished"
    elif tail.ending in ("stopped", "failed"):
        state = tail.ending
    return Run(
        str(path), name, state, max(tail.step, saved), steps, saved, tail.loss, tail.heldout.get(HELDOUT, {}),
        tail.evaluated, _size(path), max(time.time() - grown, 0.0), message if state != "finished" else "", config,
    )  # fmt: skip


def _read_config(file: Path) -> dict[str, Any]:
    """Dotted key -> value. Raises `NotARunError`."""
    try:
        tree = yaml.load(file.read_bytes(), Loader=Loader)
    except FileNotFoundError:
        raise NotARunError(f"{file.parent}: not a run (it has no {CONFIG_FILE})") from None
    except OSError as error:
        raise NotARunError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise NotARunError(f"{file} cannot be read ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise NotARunError(f"{file}: not a configuration")
    return coerce.flatten(tree, coerce.keys(Config))


def _size(path: Path) -> int:
    """Bytes of all files below `path`; files that vanish meanwhile do not count."""
    total = 0
    try:
        for entry in os.scandir(path):
            try:
                if entry.is_dir(follow_symlinks=False):
                    total += _size(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue
    except OSError:
        pass
    return total


def _list(directory: Path, as_json: bool) -> int:
    """Print the runs, the last to change first, and directories that are none. They make no difference to the code."""
    alone = (directory / CONFIG_FILE).exists()
    found, problems = [], []
    for path in [directory] if alone else sorted(path for path in directory.iterdir() if path.is_dir()):
        try:
            found.append(read_run(path))
        except NotARunError as problem:
            problems.append(str(problem))
    found.sort(key=lambda run: (run.age_seconds, run.path))
    if as_json:
        print(json.dumps({"runs": [run.to_json() for run in found], "problems": problems}, indent=2))
        return 0
    if found:
        _print_table([COLUMNS, *(_row(run) for run in found)], right=range(3, len(COLUMNS)))
    else:
        print(f"{directory} has no runs")
    notes = [f"{run.path}: {run.state}; {run.message}" for run in found if run.message and run.state != "stopped"]
    if notes or problems:
        print("", *notes, *problems, sep="\n")
    return 0


def _row(run: Run) -> tuple[str, ...]:
    loss = mean(run.heldout)
    return (
        run.path, run.recipe, run.state, f"{run.step:,}/{run.steps:,}", _number(run.loss), _number(loss),
        _bytes(run.size_bytes), _age(run.age_seconds),
    )  # fmt: skip


def _compare(first: Run, second: Run, as_json: bool) -> int:
    """Print the keys in which two runs differ, and the figures of both."""
    keys = _differing(first.config, second.config)
    if as_json:
        print(json.dumps({"runs": [first.to_json(), second.to_json()], "differing": keys}, indent=2, default=str))
        return 0
    rows: list[tuple[str, ...]] = [
        ("", first.path, second.path),
        *((key, show(a), show(b)) for key, (a, b) in keys.items()),
    ]
    if not keys:
        rows.append(("no key differs", "", ""))
    runs = (first, second)
    rows += [
        ("", "", ""),
        ("state", *(run.state for run in runs)),
        ("step", *(f"{run.step:,}/{run.steps:,}" for run in runs)),
        (f"loss, last {RECENT}", *(_number(run.loss) for run in runs)),
    ]
    for source in {**first.heldout, **second.heldout}:
        rows.append((f"held-out {source}", *(_number(run.heldout.get(source)) for run in runs)))
    rows += [
        ("held-out, mean", *(_number(mean(run.heldout)) for run in runs)),
        ("evaluated at step", *(f"{run.evaluated:,}" if run.heldout else "-" for run in runs)),
        ("size", *(_bytes(run.size_bytes) for run in runs)),
        ("age", *(_age(run.age_seconds) for run in runs)),
    ]
    _print_table(rows, right=(1, 2))
    return 0


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> both values, where they differ; the directory itself aside. A key that a run's time did not have yet is
    as `BEFORE` says, or None."""
    sides = [{**BEFORE, **side, "run.dir": None} for side in (first, second)]
    pairs = {key: (sides[0].get(key), sides[1].get(key)) for side in sides for key in side}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] | range) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{cell:>{w}}" if i in right else f"{cell:<{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _age(seconds: float) -> str:
    """The largest unit that fits: 3 d, 5 h, 12 min, 40 s."""
    size, unit = next(((size, unit) for size, unit in AGES if seconds >= size), AGES[-1])
    return f"{seconds / size:.0f} {unit}"
