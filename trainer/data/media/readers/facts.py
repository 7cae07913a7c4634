"""A recording from an array and the facts that are stored with it: sampling rate, and names and units of channels.

Libraries keep them in attributes or in small arrays beside the signal, under names of their own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Options, Recording, numbered, on_grid, pick, refuse_sideways
from trainer.data.media.readers.times import Seconds, is_time_name, seconds_of_array, unchosen_times

# Names without regard to case and to what joins their words.
RATES = (
    "samplingrate", "samplerate", "samplingfrequency", "samplefrequency", "samplingfreq", "samplefreq", "sfreq",
    "srate", "fs", "sr", "samplingratehz", "sampleratehz", "fshz",
)  # fmt: skip
NAMES = ("channels", "channelnames", "channellabels", "chnames", "signames", "leads", "leadnames")
OF_UNITS = ("units", "unit")
KNOWN = frozenset((*RATES, *NAMES, *OF_UNITS))
RATE = re.compile(r"\s*([-+.\deE]+)\s*(?:hz)?\s*", re.IGNORECASE)
NUMBERS, SIGNALS = "biufc", "biufcV"  # kinds of types
Facts = Sequence[Mapping[str, Any]]  # those that are nearest to the array first


def is_known(name: str) -> bool:
    """Return True for the name of a fact."""
    return _plain(name) in KNOWN


def is_signal(name: str, values: Any) -> bool:
    """Return True for an array or dataset that may be a signal: numbers or records, and not a fact beside one."""
    return values.ndim > 0 and values.dtype.kind in SIGNALS and not (values.size == 1 and is_known(name))


def only(names: list[str], wanted: str | None, where: str, among: Sequence[str] = ()) -> str:
    """The name that is wanted, or the only one. Raises DataError for one that is not there, or for several.

    among: others that may be wanted.
    """
    if wanted in names or wanted in among or (wanted is None and len(names) == 1):
        return wanted or names[0]
    if wanted:
        found = f"no variable {wanted}"
    elif names:
        found = f"{len(names)} variables; choose one with variable="
        times = next((name for name in names if is_time_name(name.rpartition("/")[2])), None)
        found += f" and its times with time={json.dumps(times)}" if times else ""
    else:
        found = "no array of numbers"
    there = f"; there are {', '.join(names)}" if names else ""
    raise DataError(f"{where}: {found}{there}", where=where, value=wanted, allowed=tuple(names))


def of_array(values: npt.NDArray[Any], facts: Facts, times: Seconds | None, options: Options, where: str) -> Recording:
    """A recording of [T], [T, C] or records whose fields are channels; `time` may be one of the fields.

    Raises: DataError for what is not numbers, a `time_axis` that is not there, a fact that cannot be used, or as
        `on_grid` for the times.
    """
    names: tuple[str, ...] = values.dtype.names or ()
    if names:
        if options.time in names:
            times = seconds_of_array(values[options.time], options.time, where)
        values, names = _of_records(values, options, where)
    if values.dtype.kind not in NUMBERS or not values.ndim:
        raise DataError(
            f"{where}: an array of {values.dtype} with {values.ndim} axes; use numbers, [steps] or [steps, channels]",
            where=where, value=str(values.dtype), allowed="[steps, channels]",
        )  # fmt: skip
    if values.ndim == 1:
        values = values[:, None]
    if options.time_axis is not None and not -values.ndim <= options.time_axis < values.ndim:
        raise DataError(
            f"{where}: time_axis={options.time_axis} of an array of {values.ndim} axes",
            where=where, value=options.time_axis, allowed=tuple(range(values.ndim)),
        )  # fmt: skip
    values = np.moveaxis(values, options.time_axis or 0, 0)
    count = values.shape[1] if values.ndim == 2 else 0
    names = names or _names(facts, count)
    if options.time_axis is None and not names and times is None:  # each would settle it
        refuse_sideways(values.shape, where)
    names = names or numbered(count)
    units = _list(_fact(facts, OF_UNITS))
    units = units if len(units) == count else units[:1] * count if len(units) == 1 else ("",) * count
    rate = _rate(facts, where) if options.rate is None else None  # which replaces it
    if times is not None and values.ndim == 2:  # others are refused for their shape
        if np.shape(times) != (len(values),):
            raise DataError(
                f"{where}: times of shape {list(np.shape(times))} for values of shape {list(values.shape)}",
                where=where, value=np.shape(times), allowed=(len(values),),
            )  # fmt: skip
        values, rate = on_grid(times, values, where)
    return Recording(values, rate, names, units)


def text_of(value: Any) -> str:
    """Text that is stored as text or bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _fact(facts: Facts, names: Sequence[str]) -> Any:
    """The nearest fact under one of the names; None without one."""
    for level in facts:
        found = {_plain(key): value for key, value in level.items()}
        for name in names:
            if name in found:
                return found[name]
    return None


def _list(value: Any) -> tuple[str, ...]:
    """Texts of one or several; none for what is not text."""
    values = [] if value is None else [*np.ravel(np.asarray(value, dtype=object))]
    return tuple(text_of(one) for one in values) if all(isinstance(one, str | bytes) for one in values) else ()


def _names(facts: Facts, count: int) -> tuple[str, ...]:
    for name in NAMES:
        found = _list(_fact(facts, (name,)))
        if len(found) == 1 and count > 1:
            found = tuple(one.strip() for one in found[0].split(","))
        if found and len(found) == count:
            return found
    return ()


def _rate(facts: Facts, where: str) -> float | None:
    found = _fact(facts, RATES)
    if found is None:
        return None
    written = [text_of(one) for one in np.ravel(np.asarray(found, dtype=object))]
    try:
        (rate,) = {float(match[1]) if (match := RATE.fullmatch(one)) else math.nan for one in written}
        if math.isnan(rate):
            raise ValueError(written)
    except ValueError as error:
        raise DataError(
            f"{where}: a sampling rate of {', '.join(written) or 'nothing'}; store one number in Hz",
            where=where, value=tuple(written), allowed="one number in Hz",
        ) from error  # fmt: skip
    return rate


def _of_records(values: npt.NDArray[Any], options: Options, where: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Fields as columns, and their names. Raises DataError for one that is not numbers, and for times."""
    others = [name for name in values.dtype.names or () if name != options.time]
    names = list(options.channels or others)
    pick(others, names, where)
    numeric = [name for name in others if values.dtype[name].kind in NUMBERS and not values.dtype[name].shape]
    for name in names:
        if name not in numeric:
            text = f"{where}: the field {name!r} has {values.dtype[name]}, not numbers; choose channels, as in "
            text += f"channels={json.dumps(numeric)}"
            raise DataError(text, where=where, value=name, allowed=tuple(numeric))
        rises = options.time is None and not options.channels and is_time_name(name) and len(values) > 1
        if rises and (np.diff(values[name].astype(np.float64)) > 0).all():
            raise unchosen_times(name, [other for other in numeric if other != name], where)
    return np.stack([values[name] for name in names], axis=-1), tuple(names)
