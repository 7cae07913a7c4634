"""Times of steps as tables and arrays have them -> seconds.

They are seconds unless the file says otherwise: by their type, by a unit that is stored with them, or by one at the end
of their name, as in `time_ms` or `Time [ms]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError

Seconds = npt.NDArray[np.float64]

# Seconds of a unit; months and years have no fixed length.
UNITS = {
    **dict.fromkeys(("nanosecond", "nanoseconds", "nsec", "ns"), 1e-9),
    **dict.fromkeys(("microsecond", "microseconds", "microsec", "us", "µs", "μs"), 1e-6),
    **dict.fromkeys(("millisecond", "milliseconds", "millisec", "msec", "msecs", "ms"), 1e-3),
    **dict.fromkeys(("second", "seconds", "sec", "secs", "s"), 1.0),
    **dict.fromkeys(("minute", "minutes", "min", "mins"), 60.0),
    **dict.fromkeys(("hour", "hours", "hr", "hrs", "h"), 3600.0),
    **dict.fromkeys(("day", "days", "d"), 86400.0),
}
AT_THE_END = re.compile(r"[^\W_][\W_]+([^\W\d_]+)[\])]?$")  # a unit behind a name
CLOCK = re.compile(r"(?:(-?\d+) days?,? )?\+?(\d+):(\d\d):(\d\d(?:\.\d*)?)")  # also as pandas writes a Timedelta
TIMES = {
    "t",
    "time",
    "times",
    "timestamp",
    "timestamps",
    "datetime",
    "seconds",
    "elapsed",
    "elapsedtime",
    "unixtime",
}  # names of times
LATEST = 1e11  # seconds, in the year 5138; what is later has another unit


def is_time_name(name: str) -> bool:
    """Return True for a name that times usually have, whatever unit is behind it."""
    unit = AT_THE_END.search(name.strip())
    if unit and unit[1].casefold() in UNITS:
        name = name[: unit.start(1)]
    return re.sub(r"[\W_]", "", name).casefold() in TIMES


def unchosen_times(name: str, channels: Sequence[str], where: str) -> DataError:
    """The fault of what is read as channels and has times, or may have. channels: the others."""
    by_time, by_channels = f"time={json.dumps(name)}", f"channels={json.dumps([*channels])}"
    text = f"{where}: {name!r} is not a channel; give {by_time} if it has the times of the steps, or {by_channels} to "
    return DataError(f"{text}leave it out", where=where, value=name, allowed=(by_time, by_channels))


def seconds_of_array(values: npt.NDArray[Any], name: str, where: str, unit: str = "") -> Seconds:
    """Times in an array; NaT becomes NaN. name: theirs, for their unit where `unit` is not one. Raises DataError."""
    if values.dtype.kind in "mM":
        return np.asarray((values - values[:1]) / np.timedelta64(1, "s"), np.float64)
    if values.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: the times {name} have the type {values.dtype}; use numbers, or give rate= instead of time=",
            where=where, value=str(values.dtype), allowed="seconds, datetime64 or timedelta64",
        )  # fmt: skip
    scale = UNITS.get(unit.strip().casefold()) or _scale_of_name(name)
    found = np.asarray(values, np.float64) * scale
    if found.size and np.nanmax(np.abs(found), initial=0) > LATEST:
        raise DataError(
            f"{where}: {name} has {values.flat[0]!s}, not a time in seconds; give it in seconds, as timestamps "
            "or under a name that ends in its unit, as in time_ms",
            where=where, value=values.flat[0].item(), allowed=f"up to {LATEST:g} s",
        )  # fmt: skip
    return found


def seconds_of_column(column: Any, name: str, where: str) -> Seconds:
    """Times in a column of Arrow: numbers, timestamps, dates, times of day, durations, or durations as text."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_time(kind):
        ticks = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        wide = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
        return np.asarray(wide.cast(pa.float64()).to_numpy(), np.float64) / ticks
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array([_clock(text, row, name, where) for row, text in enumerate(column.to_pylist(), 1)])
    if pa.types.is_temporal(kind):
        return seconds_of_array(column.to_numpy(), name, where)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(
            f"{where}: column {name} has {kind}, not times; choose another, or give rate= instead of time=",
            where=where, value=str(kind), allowed="seconds or timestamps",
        )  # fmt: skip
    return seconds_of_array(column.cast(pa.float64(), safe=False).to_numpy(), name, where)


def _scale_of_name(name: str) -> float:
    unit = AT_THE_END.search(name.strip())
    return UNITS.get(unit[1].casefold(), 1.0) if unit else 1.0


def _clock(text: str | None, row: int, name: str, where: str) -> float:
    if text is None or not text.strip():
        return np.nan
    found = CLOCK.fullmatch(text.strip())
    if not found:
        raise DataError(
            f"{where}: column {name}, data row {row}: {text[:40]!r} is not a time; use seconds, or timestamps such as "
            "2024-01-31 12:00:00.5",
            where=where, value=(name, row, text), allowed="seconds or timestamps",
        )  # fmt: skip
    days, hours, minutes, seconds = found.groups()
    return int(days or 0) * 86400.0 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
