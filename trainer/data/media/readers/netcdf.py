"""Signals in netCDF files, with their scale, masks and fill values applied by netCDF4."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from trainer.data.errors import DataError
from trainer.data.media.readers.facts import of_array, only, text_of
from trainer.data.media.readers.recording import Options, Recording, Source, library
from trainer.data.media.readers.times import UNITS, Seconds

SINCE = re.compile(r"\s+since\s+", re.IGNORECASE)


def read_netcdf(source: Source, options: Options, where: str) -> Recording:
    """A variable; one in a group by its path, `group/variable`.

    Its first dimension with times as coordinate, or called time, has the steps; `time` names other times. Texts along
    the other dimension are the names of channels. Where the coordinate cannot be used and a rate is given, the steps
    are taken as they are.
    """
    netcdf = library("netCDF4", where)
    file = netcdf.Dataset("memory", memory=source) if isinstance(source, bytes) else netcdf.Dataset(str(source))
    with closing(file):
        variables = dict(_variables(file))
        numeric = [
            key for key, item in variables.items()
            if item.ndim and item.dtype != str and item.dtype.kind in "iuf" and key != options.time
            and item.dimensions != (item.name,)
        ]  # fmt: skip
        variable = variables[only(numeric, options.variable and options.variable.strip("/"), where)]
        coordinates = [_coordinate(variable, dimension) for dimension in variable.dimensions]
        axis = _axis(variable, coordinates) if options.time_axis is None else options.time_axis
        along = coordinates[axis] if -variable.ndim <= axis < variable.ndim else None
        if options.time is not None:
            along = variables[only(list(variables), options.time.strip("/"), where)]
        elif _is_text(along):
            along = None
        values = np.ma.filled(variable[:].astype(np.float64), np.nan)
        labels = [_texts(one) for one in coordinates if one is not along and _is_text(one)]
        facts = [variable.__dict__, variable.group().__dict__, file.__dict__, {"channels": labels[0] if labels else []}]
        chosen = replace(options, time=None, time_axis=axis)
        try:
            return of_array(values, facts, None if along is None else _times(along, where), chosen, where)
        except DataError:
            if along is None or options.time is not None or options.rate is None:
                raise
        return of_array(values, facts, None, chosen, where)


def _variables(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Variables of a group and of those in it, with their paths."""
    yield from ((path + key, item) for key, item in group.variables.items())
    for key, inner in group.groups.items():
        yield from _variables(inner, f"{path}{key}/")


def _coordinate(variable: Any, dimension: str) -> Any:
    """The variable with the name of a dimension, in the group of a variable or above it; None without one."""
    group = variable.group()
    while group is not None and dimension not in group.variables:
        group = group.parent
    return None if group is None else group.variables[dimension]


def _axis(variable: Any, coordinates: list[Any]) -> int:
    """The dimension of the steps: the first with times, else the first without texts, else the first."""
    of_times = [
        axis for axis, (dimension, coordinate) in enumerate(zip(variable.dimensions, coordinates, strict=True))
        if dimension == "time" or SINCE.search(_unit(coordinate))
    ]  # fmt: skip
    return [*of_times, *(axis for axis, one in enumerate(coordinates) if not _is_text(one)), 0][0]


def _is_text(variable: Any) -> bool:
    return variable is not None and (variable.dtype == str or variable.dtype.kind in "SU")


def _texts(variable: Any) -> list[str]:
    values = variable[:]
    if values.ndim > 1:  # characters
        values = [b"".join(np.ma.filled(row, b"")) for row in values]
    return [text_of(one).strip("\0 ") for one in values]


def _unit(variable: Any) -> str:
    return str(getattr(variable, "units", ""))


def _times(variable: Any, where: str) -> Seconds:
    written = SINCE.split(_unit(variable).strip())[0] or "seconds"
    if written.casefold() not in UNITS:
        raise DataError(
            f"{where}: times in {written}, which have no fixed length in seconds; choose others with time=, or give "
            "rate=",
            where=where, value=written, allowed=tuple(UNITS),
        )  # fmt: skip
    return np.ma.filled(variable[:].astype(np.float64), np.nan) * UNITS[written.casefold()]
