"""A recorded signal as every reader returns it, and its form in a shard."""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError

MAGIC = b"OCTSIG1\n"
MOST_CHANNELS = 1024  # of one recording; more are usually the steps
# More channels than this and than this many times the steps are the steps, in all likelihood.
MANY_CHANNELS, SIDEWAYS = 32, 4
MOST_VALUES = 1 << 28  # of one recording: 2 GiB in fp64

A_RATE, NAMES, A_NAME, AN_AXIS = "a number above 0", "a list of names", "a name", "a whole number"
A_TIME = "a number of at least 0"
OPTION_TYPES = {
    "rate": A_RATE, "channels": NAMES, "units": NAMES, "format": A_NAME, "variable": A_NAME, "time": A_NAME,
    "time_axis": AN_AXIS, "start": A_TIME, "seconds": A_RATE,
}  # fmt: skip

Source = Path | bytes


@dataclass(frozen=True)
class Options:
    """The part of a file to read, as in `read_recording`."""

    variable: str | None = None
    time: str | None = None
    time_axis: int | None = None
    channels: tuple[str, ...] = ()
    rate: float | None = None


@dataclass(frozen=True)
class Recording:
    """A signal with its meaning. T steps, C channels.

    values: [T, C] fp32 or fp64, in `units`; what is missing (gaps, fill values, masked steps) is NaN.
    rate: steps per second, None where it is unknown. channels, units: C names each; an unknown unit is "".
    """

    values: npt.NDArray[Any]
    rate: float | None
    channels: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def steps(self) -> int:
        return len(self.values)

    def to_bytes(self) -> bytes:
        """The recording as a shard keeps it: `from_bytes` needs none of the readers' libraries, and gives it back.

        Values that fp32 has exactly take 4 bytes, others 8.
        """
        narrow = self.values.astype(np.float32)
        exact = np.array_equal(narrow, self.values, equal_nan=True)
        values = narrow if exact else self.values.astype(np.float64)
        dtype = "<f4" if exact else "<f8"
        header = {
            "steps": self.steps,
            "dtype": dtype,
            "rate": self.rate,
            "channels": self.channels,
            "units": self.units,
        }
        text = json.dumps(header).encode()
        return MAGIC + len(text).to_bytes(4, "little") + text + values.astype(dtype).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Recording:
        """Raises DataError for data that `to_bytes` did not write, or that is truncated."""
        if data[: len(MAGIC)] != MAGIC:
            raise DataError(f"{where}: not a recording as Octavo stores it", where=where, value=data[:8])
        start = len(MAGIC) + 4
        end = start + int.from_bytes(data[len(MAGIC) : start], "little")
        try:
            header = json.loads(data[start:end])
            shape = header["steps"], len(header["channels"])
            values = np.frombuffer(data, header["dtype"], offset=end).reshape(shape)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{where}: a stored recording that is corrupt: {error}", where=where, value=len(data)
            ) from error
        return cls(values, header["rate"], tuple(header["channels"]), tuple(header["units"]))


def check_options(where: str, **options: Any) -> None:
    """Check the types of options of `OPTION_TYPES`; None is not given. Raises DataError, also for a rate that is not
    finite and above 0."""
    for key, value in options.items():
        allowed = OPTION_TYPES[key]
        if allowed in (A_RATE, A_TIME):
            fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            fits = fits and (value > 0 or (value == 0 and allowed == A_TIME))
        elif allowed == NAMES:
            fits = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
        else:
            fits = isinstance(value, str) if allowed == A_NAME else type(value) is int
        if value is not None and not fits:
            raise DataError(f"{where}: {key}={value!r}; use {allowed}", where=where, value=value, allowed=allowed)


def refuse_sideways(shape: Sequence[int], where: str) -> None:
    """Raises DataError for an array [steps, channels] that looks as if it were [channels, steps]."""
    if len(shape) != 2 or shape[1] <= max(MANY_CHANNELS, SIDEWAYS * shape[0]):
        return
    raise DataError(
        f"{where}: {shape[0]:,} steps of {shape[1]:,} channels; give time_axis=1 if the steps are along the second "
        "axis, or time_axis=0 if they are not",
        where=where, value=tuple(shape), allowed="time_axis=1 or time_axis=0",
    )  # fmt: skip


def checked(recording: Recording, where: str) -> Recording:
    """The same recording, integers in fp64. Raises DataError without a finite value, or for a bad shape."""
    values = recording.values
    if values.ndim != 2 or not values.size or np.iscomplexobj(values):
        raise DataError(
            f"{where}: a signal of shape {list(values.shape)} and {values.dtype}; use real values, [steps, "
            "channels], none of them 0",
            where=where, value=values.shape, allowed="[steps, channels]",
        )  # fmt: skip
    if values.shape[1] > MOST_CHANNELS or values.size > MOST_VALUES:
        raise DataError(
            f"{where}: {values.shape[0]:,} steps of {values.shape[1]:,} channels; at most {MOST_CHANNELS} channels and "
            f"{MOST_VALUES:,} values are read (time_axis=1 if the steps are along the second axis)",
            where=where, value=values.shape, allowed=(MOST_CHANNELS, MOST_VALUES),
        )  # fmt: skip
    rate = recording.rate
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        rate = None
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if not np.isfinite(values).any():
        raise DataError(f"{where}: a signal without one finite value", where=where, value=values.shape)
    return replace(recording, values=values, rate=rate)


def chosen(recording: Recording, channels: Sequence[str], where: str) -> Recording:
    """The channels of these names, in this order; all of them for an empty sequence."""
    if not channels:
        return recording
    columns = pick(recording.channels, channels, where)
    return replace(
        recording,
        values=recording.values[:, columns],
        channels=tuple(channels),
        units=tuple(recording.units[column] for column in columns),
    )


def excerpt(recording: Recording, start: float | None, seconds: float | None, where: str) -> Recording:
    """The steps from `start`, by default the first, for `seconds`, by default to the last; both are rounded to steps.

    Excerpts that follow each other have every step once. Raises DataError for a recording without a sampling rate, and
    for an excerpt that is not inside it.
    """
    if start is None and seconds is None:
        return recording
    if recording.rate is None:
        raise DataError(
            f"{where}: an excerpt of a recording whose sampling rate is unknown; give rate=",
            where=where,
            allowed="rate=",
        )
    opening = start or 0.0
    end = recording.steps / recording.rate if seconds is None else opening + seconds
    places = opening * recording.rate, end * recording.rate
    first, last = (round(place) if math.isfinite(place) else -1 for place in places)
    if last == recording.steps + 1:  # of times that were rounded
        last -= 1
    if not 0 <= first < last <= recording.steps:
        length = recording.steps / recording.rate
        raise DataError(
            f"{where}: an excerpt from {opening:g} s to {end:g} s of a recording of {length:g} s",
            where=where, value=(start, seconds), allowed=f"inside of {length:g} s",
        )  # fmt: skip
    return replace(recording, values=recording.values[first:last])


def pick(names: Sequence[str], wanted: Iterable[str], where: str) -> list[int]:
    """The places of names. Raises DataError for one that is not there."""
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise DataError(
            f"{where}: no channel {unknown[0]}; there are {', '.join(names)}",
            where=where,
            value=unknown[0],
            allowed=tuple(names),
        )
    return [names.index(name) for name in wanted]


def unique(names: Iterable[str | None]) -> list[str]:
    """The names, with a number behind those that came before."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        name = name or ""
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def numbered(count: int) -> tuple[str, ...]:
    """Names of channels that have none."""
    return tuple(map(str, range(count)))


def opened(source: Source) -> str | BinaryIO:
    """The form that the libraries take: a path as text, or bytes as a file."""
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def library(name: str, where: str) -> Any:
    """An imported package of the extra `signals`. Raises DataError that names the extra, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"{where}: reading it needs {name}: pip install -e '.[signals]'",
            where=where, value=name, allowed=".[signals]",
        ) from error  # fmt: skip


def one_rate(rates: dict[str, float], where: str) -> float:
    """The sampling rate that all channels have. Nothing is resampled: channels of several rates are several signals."""
    if len(set(rates.values())) > 1:
        found = ", ".join(f"{name}: {rate:.10g}" for name, rate in rates.items())
        most = max(rates.values(), key=[*rates.values()].count)
        some = f"channels={json.dumps([name for name, rate in rates.items() if rate == most], ensure_ascii=False)}"
        raise DataError(
            f"{where}: channels of several sampling rates ({found} Hz); choose some of one rate, as in {some}",
            where=where, value=rates, allowed=some,
        )  # fmt: skip
    return next(iter(rates.values()))


def on_grid(seconds: npt.NDArray[np.float64], values: npt.NDArray[Any], where: str) -> tuple[npt.NDArray[Any], float]:
    """Values at rising times -> values at equal distances, NaN in gaps, and the sampling rate.

    Raises: DataError for times that do not rise, or that are off their grid by over a tenth of a step.
    """
    if len(seconds) < 2:
        raise DataError(f"{where}: one time has no sampling rate; give rate=", where=where, value=len(seconds))
    if not np.isfinite(seconds).all():
        row = int(np.flatnonzero(~np.isfinite(seconds))[0]) + 1
        text = f"{where}: step {row} has no time; fill or remove it, or give rate= instead of time="
        raise DataError(text, where=where, value=row, allowed="a time for each step")
    gaps = np.diff(seconds)
    step = float(np.quantile(gaps, 0.5, method="lower"))  # one that is there
    fault = DataError(
        f"{where}: times that are not a grid: their steps are {gaps.min():g} to {gaps.max():g} s; resample them, or "
        "give rate= instead of time=",
        where=where, value=(float(gaps.min()), float(gaps.max())), allowed="times at equal distances, with gaps",
    )  # fmt: skip
    if not step > 0 or (gaps <= 0).any():
        raise fault
    # A step from the whole length, which rounded times give better than one of theirs
    count = np.rint((seconds[-1] - seconds[0]) / step)
    step = (seconds[-1] - seconds[0]) / count
    places = np.rint((seconds - seconds[0]) / step)
    if (abs(seconds - seconds[0] - places * step) > step / 10).any() or (np.diff(places) < 1).any():
        raise fault
    total = int(count) + 1
    if total * values.shape[1] > MOST_VALUES:
        raise DataError(
            f"{where}: {total:,} steps with the gaps; cut it at the gaps",
            where=where, value=total, allowed=MOST_VALUES // values.shape[1],
        )  # fmt: skip
    placed = np.full((total, values.shape[1]), np.nan)
    placed[places.astype(np.int64)] = values
    return placed, 1 / step
