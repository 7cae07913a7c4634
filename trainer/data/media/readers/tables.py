"""Signals in the columns of a table: CSV, TSV and Parquet, through pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Options, Recording, Source, numbered, on_grid, opened, pick

MOST_BYTES = 1 << 30  # of a block that pyarrow takes
MISSING = ("NA", "N/A", "n/a", "NULL", "null", "#N/A", "#NA")  # besides NaN; pyarrow has a few more
TICKS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # of a timestamp, a second


def read_csv(source: Source, options: Options, where: str) -> Recording:
    """Columns with a header row; without one, if every cell of the first row is a number, channels are "0", "1", ...

    Empty fields and the usual markers (NA, NaN, null) are missing. Raises: DataError for a first row that counts 0, 1,
    ..., which could be names as pandas writes them or numbers, and as `_columns` does.
    """
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

    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    block = min(max(size, 1) + 1, MOST_BYTES)  # types are inferred from the first block alone

    def table(has_names: bool) -> Any:
        return csv.read_csv(
            opened(source),
            read_options=csv.ReadOptions(block_size=block, autogenerate_column_names=not has_names),
            parse_options=csv.ParseOptions(delimiter=delimiter),
        )

    found = table(True)
    if not _are_names(found.column_names, where):
        found = table(False)
        found = found.rename_columns(numbered(found.num_columns))
    return _columns(found, options, where)


def _are_names(cells: Sequence[str], where: str) -> bool:
    """Return True if the cells of a first row are names of columns."""
    filled = [cell for cell in cells if cell.strip()]
    if not filled or not all(_is_number(cell) for cell in filled):
        return True
    if filled != [*numbered(len(filled))]:
        return False
    if not cells[0].strip():  # pandas' index has no name
        return True
    raise DataError(
        f"{where}: its first row is {', '.join(filled[:4])}{', ...' if len(filled) > 4 else ''}, which could be names "
        "of columns or numbers; give the columns names that are not numbers",
        where=where, value=tuple(cells), allowed="a header row with names",
    )  # fmt: skip


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip() in MISSING
    return "_" not in cell


def _columns(table: Any, options: Options, where: str) -> Recording:
    """The channels that are named, or all columns but for the time.

    Raises: DataError for a column with something else than numbers, with the row and the value of its first one.
    """
    import pyarrow as pa

    def is_number(name: str) -> bool:
        kind = table.schema.field(name).type
        return any(
            is_kind(kind)
            for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
        )

    if options.time is not None:
        pick(table.column_names, [options.time], where)
    names = list(options.channels or (name for name in table.column_names if name != options.time))
    pick(table.column_names, names, where)
    numeric = tuple(name for name in table.column_names if name != options.time and is_number(name))
    for name in names:
        if not is_number(name):
            raise _no_number(table[name], name, numeric, where)
    if not names:
        raise DataError(f"{where}: it has no column beside {options.time}", where=where, value=options.time)
    columns = [table[name].cast(pa.float64(), safe=False).to_numpy() for name in names]
    values, rate = np.stack(columns, axis=1), None
    if options.time is not None:
        values, rate = on_grid(_seconds(table[options.time]), values, where)
    return Recording(values, rate, tuple(names), ("",) * len(names))


def _no_number(column: Any, name: str, numeric: tuple[str, ...], where: str) -> DataError:
    """The fault of a column. numeric: names of those that have numbers alone."""
    cells = ((row, cell) for row, cell in enumerate(column.to_pylist(), 1) if cell is not None)
    bad = ((row, cell) for row, cell in cells if not isinstance(cell, str) or (cell.strip() and not _is_number(cell)))
    row, cell = next(bad, (1, None))
    choose = f"; or choose channels, as in channels={list(numeric)}".replace("'", '"') if numeric else ""
    return DataError(
        f"{where}: column {name}, data row {row}: {str(cell)[:40]!r} is not a number; correct it, or leave "
        f"it empty if it is missing{choose}",
        where=where, value=(name, row, cell), allowed=numeric,
    )  # fmt: skip


def _seconds(column: Any) -> npt.NDArray[np.float64]:
    """Times from the first one on; timestamps are subtracted as integers."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        ticks = column.cast(pa.int64()).to_numpy()
        return (ticks - ticks[0]) / TICKS[kind.unit]
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
