"""Signals in arrays: HDF5, netCDF and NumPy files.

Fill values, masks and scales are applied, so that none of them counts as a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import (
    Options,
    Recording,
    Source,
    library,
    numbered,
    on_grid,
    opened,
)

RATES = ("sampling_rate", "sample_rate", "sampling_frequency", "samplerate", "fs", "Fs")  # attributes with a rate in Hz
NAMES = ("channels", "channel_names")  # attributes with the names of channels
# Seconds of the units of a netCDF time; months and years have no fixed length.
UNITS = {
    **dict.fromkeys(("nanosecond", "nanoseconds", "nsec", "ns"), 1e-9),
    **dict.fromkeys(("microsecond", "microseconds", "microsec", "us"), 1e-6),
    **dict.fromkeys(("millisecond", "milliseconds", "msec", "msecs", "ms"), 1e-3),
    **dict.fromkeys(("second", "seconds", "sec", "secs", "s"), 1.0),
    **dict.fromkeys(("minute", "minutes", "min", "mins"), 60.0),
    **dict.fromkeys(("hour", "hours", "hr", "hrs", "h"), 3600.0),
    **dict.fromkeys(("day", "days", "d"), 86400.0),
}


def read_numpy(source: Source, options: Options, where: str) -> Recording:
    """.npy, or an array of .npz: [T], [T, C], or records whose fields are channels. Pickled objects are refused."""
    loaded = np.load(opened(source), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if options.variable is not None or options.time is not None:
            raise DataError(f"{where}: .npy has one array; leave out variable and time", where=where, allowed=None)
        return _recording(loaded, {}, None, options, where)
    with closing(loaded):
        name = _only([key for key in loaded if key != options.time], options.variable, where)
        times = None if options.time is None else loaded[_only(list(loaded), options.time, where)]
        return _recording(loaded[name], {}, times, options, where)


def read_hdf5(source: Source, options: Options, where: str) -> Recording:
    """A dataset; its sampling rate is an attribute of it, its group or the file, unless there are times.

    A netCDF file is read as one: its fill values would be measurements here.
    """
    h5py = library("h5py", where)
    with h5py.File(opened(source), "r") as file:
        netcdf = "_NCProperties" in file.attrs
        if not netcdf:
            found: list[str] = []
            file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            numeric = [name for name in found if file[name].ndim and file[name].dtype.kind in "biufV"]
            name = _only([key for key in numeric if key != options.time], options.variable, where)
            data = file[name]
            attributes = {**file.attrs, **data.parent.attrs, **data.attrs}
            times = None if options.time is None else file[_only(found, options.time, where)][()]
            return _recording(_unpacked(data[()], data.attrs), attributes, times, options, where)
    return read_netcdf(source, options, where)


def read_netcdf(source: Source, options: Options, where: str) -> Recording:
    """A variable, with its scale, masks and fill values applied by netCDF4.

    Its first dimension with times as coordinate, or called time, has the steps; `time` names other times.
    """
    netcdf = library("netCDF4", where)
    file = netcdf.Dataset("memory", memory=source) if isinstance(source, bytes) else netcdf.Dataset(str(source))
    with closing(file):
        coordinates = {*file.dimensions, options.time}
        numeric = [
            key for key, item in file.variables.items() if item.ndim and item.dtype != str and item.dtype.kind in "iuf"
        ]
        name = _only([key for key in numeric if key not in coordinates], options.variable, where)
        variable = file.variables[name]
        axes = [
            axis for axis, dimension in enumerate(variable.dimensions)
            if dimension == "time" or " since " in getattr(file.variables.get(dimension), "units", "")
        ]  # fmt: skip
        axis = options.time_axis if options.time_axis is not None else axes[0] if axes else 0
        along = options.time or (variable.dimensions[axis] if variable.dimensions[axis] in file.variables else None)
        times = None
        if along is not None and (along in file.variables or options.time):
            times = _netcdf_times(file.variables[_only(list(file.variables), along, where)], where)
        values = np.ma.filled(variable[:].astype(np.float64), np.nan)
        attributes = {**file.__dict__, **variable.__dict__}
        return _recording(values, attributes, times, Options(name, along, axis), where)


def _netcdf_times(variable: Any, where: str) -> npt.NDArray[np.float64]:
    units = getattr(variable, "units", "seconds").split(" since ")[0].strip()
    if units not in UNITS:
        raise DataError(
            f"{where}: times in {units}, which have no fixed length in seconds; give rate= and another time",
            where=where, value=units, allowed=tuple(UNITS),
        )  # fmt: skip
    return np.ma.filled(variable[:].astype(np.float64), np.nan) * UNITS[units]


def _unpacked(values: npt.NDArray[Any], attributes: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Values with the fill values and the scale of netCDF's conventions applied, where there are such attributes."""
    fills = [np.ravel(attributes[key]) for key in ("_FillValue", "missing_value") if key in attributes]
    scaled = {"scale_factor", "add_offset"} & set(attributes)
    if not fills and not scaled:
        return values
    missing = np.isin(values, np.concatenate(fills)) if fills else np.zeros(values.shape, bool)
    wide = values.astype(np.float64)
    wide = wide * float(np.ravel(attributes.get("scale_factor", 1))[0]) + float(
        np.ravel(attributes.get("add_offset", 0))[0]
    )
    wide[missing] = np.nan
    return wide


def _recording(
    values: npt.NDArray[Any],
    attributes: Mapping[str, Any],
    times: npt.NDArray[Any] | None,
    options: Options,
    where: str,
) -> Recording:
    names: Sequence[str] = values.dtype.names or ()
    if names:
        values = np.stack([values[name] for name in names], axis=-1)
    if values.ndim == 1:
        values = values[:, None]
    if options.time_axis is not None and not -values.ndim <= options.time_axis < values.ndim:
        raise DataError(
            f"{where}: time_axis={options.time_axis} of an array of {values.ndim} axes",
            where=where, value=options.time_axis, allowed=tuple(range(values.ndim)),
        )  # fmt: skip
    values = np.moveaxis(values, options.time_axis or 0, 0)
    count = values.shape[1] if values.ndim > 1 else 0
    for key in NAMES:
        if not names and len(np.atleast_1d(attributes.get(key, ()))) == count:
            names = [_text(name) for name in np.atleast_1d(attributes[key])]
    rates = [float(np.ravel(attributes[key])[0]) for key in RATES if key in attributes]
    units = [_text(unit) for unit in np.atleast_1d(attributes.get("units", ""))]
    rate = rates[0] if rates else None
    if times is not None:
        if values.ndim != 2 or np.shape(times) != (len(values),):
            raise DataError(
                f"{where}: times of shape {list(np.shape(times))} for values of shape {list(values.shape)}",
                where=where, value=np.shape(times), allowed=(len(values),),
            )  # fmt: skip
        values, rate = on_grid(np.asarray(times, np.float64), values, where)
    return Recording(
        values, rate, tuple(names) or numbered(count), tuple(units if len(units) == count else units[:1] * count)
    )


def _only(names: list[str], wanted: str | None, where: str) -> str:
    """The name that is wanted, or the only one. Raises DataError for one that is not there, or for several."""
    if wanted in names or (wanted is None and len(names) == 1):
        return wanted or names[0]
    found = f"no variable {wanted}" if wanted else f"{len(names)} variables; choose one with variable="
    raise DataError(f"{where}: {found}; there are {', '.join(names)}", where=where, value=wanted, allowed=tuple(names))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
