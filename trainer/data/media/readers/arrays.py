"""Signals in arrays: HDF5 and NumPy files.

Fill values and scales are applied, so that none of them counts as a measurement.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.readers.facts import is_known, is_signal, of_array, only, text_of
from trainer.data.media.readers.netcdf import read_netcdf
from trainer.data.media.readers.recording import MOST_CHANNELS, Options, Recording, Source, library, opened
from trainer.data.media.readers.times import UNITS, Seconds, is_time_name, seconds_of_array

SCALE = b"DIMENSION_SCALE"  # the class of a dataset with the coordinates of others


def read_numpy(source: Source, options: Options, where: str) -> Recording:
    """.npy, or an array of .npz: [T], [T, C], or records whose fields are channels. Pickled objects are refused.

    The other arrays of .npz may have the sampling rate, and names and units of channels, as `facts` knows them.
    """
    loaded = np.load(opened(source), allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if options.variable is not None or (options.time is not None and not loaded.dtype.names):
            raise DataError(f"{where}: .npy has one array; leave out variable and time", where=where, allowed=None)
        return of_array(loaded, [], None, options, where)
    with closing(loaded):
        chosen = options.variable in loaded.files
        keys = [key for key in loaded if not chosen or key in (options.variable, options.time) or is_known(key)]
        arrays = {key: array for key in keys if (array := _plain_array(loaded, key)) is not None}
    signals = [key for key, array in arrays.items() if key != options.time and is_signal(key, array)]
    name = only(signals, options.variable, where, among=list(arrays))
    times = None
    if options.time is not None and options.time not in (arrays[name].dtype.names or ()):
        key = only([key for key in arrays if key != name], options.time, where)
        times = seconds_of_array(arrays[key], key, where)
    beside = {key: array for key, array in arrays.items() if key != name and is_known(key)}
    return of_array(arrays[name], [beside], times, options, where)


def _plain_array(archive: Any, key: str) -> npt.NDArray[Any] | None:
    """An array of an archive; None for pickled objects."""
    try:
        found: npt.NDArray[Any] = archive[key]
    except ValueError:
        return None
    return found


def read_hdf5(source: Source, options: Options, where: str) -> Recording:
    """A dataset; its facts are attributes of it, of its groups or of the file, or datasets there. Times are those of
    `time`, or the scale of its steps.

    A netCDF file is read as one: its fill values would be measurements here.
    """
    h5py = library("h5py", where)
    with h5py.File(opened(source), "r") as file:
        if "_NCProperties" not in file.attrs:
            found: list[str] = []
            file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            signals = [
                name for name in found
                if name != options.time and file[name].attrs.get("CLASS") != SCALE
                and is_signal(name.rpartition("/")[2], file[name])
            ]  # fmt: skip
            data = file[only(signals, options.variable and options.variable.strip("/"), where, among=found)]
            facts = [dict(data.attrs), *_beside(h5py, data)]
            times = _hdf5_times(file, found, data, options, where)
            return of_array(_unpacked(data, where), facts, times, options, where)
    return read_netcdf(source, options, where)


def _beside(h5py: Any, data: Any) -> list[dict[str, Any]]:
    """Attributes and small datasets of the groups above a dataset, from the nearest one on."""
    found, group = [], data
    while group.name != "/":
        group = group.parent
        items = {key: group.get(key) for key in group if is_known(key)}
        small = {key: item for key, item in items.items() if isinstance(item, h5py.Dataset) and _is_small(item)}
        datasets = {key: item[()] for key, item in small.items() if item != data}
        found.append({**datasets, **group.attrs})
    return found


def _is_small(data: Any) -> bool:
    """Return True for a dataset that may have one value for each channel at most."""
    return data.size is not None and data.size <= MOST_CHANNELS


def _hdf5_times(file: Any, names: list[str], data: Any, options: Options, where: str) -> Seconds | None:
    """The times that are chosen, or the scale of the steps, if its name or unit says that it has times."""
    if options.time is not None:
        if options.time in (data.dtype.names or ()):
            return None
        along = file[only([name for name in names if name != data.name.strip("/")], options.time.strip("/"), where)]
    else:
        axis = options.time_axis or 0
        along = next(iter(data.dims[axis % data.ndim].values()), None) if -data.ndim <= axis < data.ndim else None
    if along is None:
        return None
    name, unit = along.name.rpartition("/")[2], text_of(along.attrs.get("units", ""))
    if options.time is None and not is_time_name(name) and unit.strip().casefold() not in UNITS:
        return None
    return seconds_of_array(along[()], name, where, unit)


def _unpacked(data: Any, where: str) -> npt.NDArray[Any]:
    """A dataset's values with fill values and the scale of netCDF's conventions applied, where there are any.

    What was never written is missing too, where a fill value was chosen for it.
    """
    values: npt.NDArray[Any] = data[()]
    fills = [np.ravel(data.attrs[key]) for key in ("_FillValue", "missing_value") if key in data.attrs]
    if values.dtype.kind in "iuf" and data.fillvalue:
        fills.append(np.ravel(data.fillvalue))
    scaled = {"scale_factor", "add_offset"} & set(data.attrs)
    if not fills and not scaled:
        return values
    missing = np.isin(values, np.concatenate(fills)) if fills else np.zeros(values.shape, bool)
    wide = values.astype(np.float64) * _number(data, "scale_factor", 1.0, where)
    wide += _number(data, "add_offset", 0.0, where)
    wide[missing] = np.nan
    return wide


def _number(data: Any, key: str, usual: float, where: str) -> float:
    """An attribute that is one number, `usual` without it. Raises DataError."""
    found = [text_of(one) for one in np.ravel(data.attrs.get(key, usual))]
    try:
        (number,) = map(float, found)
    except ValueError as error:
        raise DataError(
            f"{where}: {key} is {', '.join(found)}; store one number, or values that are scaled already",
            where=where, value=tuple(found), allowed="one number",
        ) from error  # fmt: skip
    return number
