"""Signals in the columns of a table: CSV, TSV and Parquet, through pyarrow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Options, Recording, Source, on_grid, opened, pick

TICKS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # of a timestamp, a second


def read_csv(source: Source, options: Options, where: str) -> Recording:
    """Columns with a header row. Empty fields are missing."""
    return _read_text(source, options, where, ",")


def read_tsv(source: Source, options: Options, where: str) -> Recording:
    """As CSV, with tabs."""
    return _read_text(source, options, where, "\t")


def read_parquet(source: Source, options: Options, where: str) -> Recording:
    """Columns; nulls are missing."""
    from pyarrow import parquet

    return _columns(parquet.read_table(opened(source)), options, where)


def _read_text(source: Source, options: Options, where: str, delimiter: str) -> Recording:
    from pyarrow import csv

    return _columns(csv.read_csv(opened(source), parse_options=csv.ParseOptions(delimiter=delimiter)), options, where)


def _columns(table: Any, options: Options, where: str) -> Recording:
    """The numeric columns but for the time; a column that is named has to be numeric."""
    import pyarrow as pa

    def is_number(name: str) -> bool:
        kind = table.schema.field(name).type
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))

    if options.time is not None:
        pick(table.column_names, [options.time], where)
    names = [name for name in table.column_names if name != options.time and is_number(name)]
    names = list(options.channels or names)
    pick(table.column_names, names, where)
    text = [name for name in names if not is_number(name)]
    if text or not names:
        raise DataError(
            f"{where}: {f'column {text[0]} has no numbers' if text else 'no column has numbers'}",
            where=where, value=text[0] if text else None, allowed=tuple(filter(is_number, table.column_names)),
        )  # fmt: skip
    columns = [table[name].cast(pa.float64(), safe=False).to_numpy() for name in names]
    values, rate = np.stack(columns, axis=1), None
    if options.time is not None:
        values, rate = on_grid(_seconds(table[options.time]), values, where)
    return Recording(values, rate, tuple(names), ("",) * len(names))


def _seconds(column: Any) -> npt.NDArray[np.float64]:
    """Times from the first one on; timestamps are subtracted as integers."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        ticks = column.cast(pa.int64()).to_numpy()
        return (ticks - ticks[0]) / TICKS[kind.unit]
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
