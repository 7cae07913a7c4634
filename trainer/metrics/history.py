"""Read the record of a run back: its last steps and evaluations, and how it ended. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

RECORD = "metrics.jsonl"
BLOCK = 1 << 18  # bytes that are read at one time, from the end
RECENT = 10  # steps whose mean is the loss of a run: single steps fluctuate
MOST_BLOCKS = 64  # a record is not searched further back for its last evaluation
BASELINES = ("unigram", "uniform")
Ending = Literal["finished", "stopped", "failed", ""]
ENDINGS: dict[str, Ending] = {"done": "finished", "stopped": "stopped", "failed": "failed"}


@dataclass(frozen=True)
class Tail:
    """The end of a record.

    step: the last one that was recorded. loss: `recent_loss`. heldout: name -> source -> value, of the
    last evaluation, which was after `evaluated` steps. ending: how the last start ended; "" where it did not say.
    """

    step: int = 0
    loss: float | None = None
    heldout: dict[str, dict[str, float]] = field(default_factory=dict)
    evaluated: int = 0
    ending: Ending = ""
    message: str = ""


def read_tail(path: Path) -> Tail:
    """The end of a record, read from its end, as records grow long. Lines that cannot be read are passed over.

    Raises `OSError`.
    """
    step, last = 0, None
    losses: list[float | None] = []  # the last step first
    evaluation: dict[str, Any] = {}
    for line in _backwards(path):
        enough = len(losses) >= RECENT and recent_loss(losses[::-1]) is not None
        if enough and b'"event"' not in line:
            continue  # older steps: there may be a million
        record = _parse(line)
        if record is None:
            continue
        last = record if last is None else last
        step = max(step, record["step"])
        if "event" not in record:
            losses.append(number(record.get("loss")))
        elif record["event"] == "evaluation" and not evaluation:
            evaluation = record
        if enough and evaluation:
            break
    ending = ENDINGS.get((last or {}).get("event", ""), "")
    message, loss = str((last or {}).get("message", "")), recent_loss(losses[::-1])
    return Tail(step, loss, measured(evaluation), evaluation.get("step", 0), ending, message)


def recent_loss(losses: Sequence[float | None]) -> float | None:
    """The mean of the last `RECENT` losses, without those that are missing; if all are, the last one before them. In
    the order of the steps; None without any."""
    last = [loss for loss in losses[-RECENT:] if loss is not None]
    last = last or [loss for loss in losses if loss is not None][-1:]
    return sum(last) / len(last) if last else None


def read_all(path: Path) -> Iterator[dict[str, Any]]:
    """Every line of a record that can be read. Raises `OSError`."""
    with open(path, "rb") as file:
        for line in file:
            if (record := _parse(line)) is not None:
                yield record


def measured(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The measurements of an evaluation: name -> source -> value, without baselines and values that are missing."""
    found = {}
    for name, values in evaluation.items():
        if isinstance(values, Mapping) and name not in BASELINES:
            numbers = {str(source): number(value) for source, value in values.items()}
            found[name] = {source: value for source, value in numbers.items() if value is not None}
    return {name: values for name, values in found.items() if values}


def number(value: Any) -> float | None:
    """A finite number of a record; None for one that is missing, infinite or not a number."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def mean(values: Mapping[str, float]) -> float | None:
    """The mean over sources."""
    return sum(values.values()) / len(values) if values else None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    fits = isinstance(record, dict) and isinstance(record.get("step"), int) and not isinstance(record["step"], bool)
    return record if fits and isinstance(record.get("event", ""), str) else None


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, last one first, of at most `MOST_BLOCKS` blocks."""
    with open(path, "rb") as file:
        place, rest = file.seek(0, 2), b""
        for _ in range(MOST_BLOCKS):
            if place <= 0:
                break
            size = min(BLOCK, place)
            place -= size
            file.seek(place)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from (line for line in reversed(lines) if line)
            rest = first
        if rest and place <= 0:
            yield rest
