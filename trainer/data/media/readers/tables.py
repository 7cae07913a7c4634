"""Signals in the columns of a table: CSV, TSV and Parquet, through pyarrow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Options, Recording, Source, numbered, on_grid, opened, pick
from trainer.data.media.readers.times import is_time_name, seconds_of_column, unchosen_times

MOST_BYTES = 1 << 30  # of a block that pyarrow takes
HEAD = 1 << 16  # bytes in which the separator of columns is looked for
GZIP, UTF_16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
# Cells that are missing: those of pandas.read_csv.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
COUNTERS = re.compile(r"index|level_0|(sample|frame|row)s?([ _.-]?(#|no|nr|number|index|id))?|#", re.IGNORECASE)
ROW_NUMBERS = re.compile(r"(Unnamed: 0(\.\d+)?)?")  # names under which pandas writes and reads an index without one


def read_csv(source: Source, options: Options, where: str) -> Recording:
    """Columns with a header row; without one, if every cell of the first row is a number, channels are "0", "1", ...

    Empty fields and the usual markers (NA, NaN, null) are missing, and row numbers of pandas are not a channel. Raises:
    DataError for a first row that counts 0, 1, ..., which could be names as pandas writes them or numbers, for columns
    that something else separates, for a text that is not UTF-8, and as `_columns` does.
    """
    return _read_text(source, options, where, ",")


def read_tsv(source: Source, options: Options, where: str) -> Recording:
    """As CSV, with tabs."""
    return _read_text(source, options, where, "\t")


def read_parquet(source: Source, options: Options, where: str) -> Recording:
    """Columns; nulls are missing, and row numbers of pandas are not a channel."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(opened(source))
    of_pandas = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    index = []
    for name in of_pandas.get("index_columns", ()):
        if isinstance(name, Mapping):  # a range, which is not a column of the file
            rows = range(*(name[key] for key in ("start", "stop", "step")))
            name = name["name"] or "__index_level_0__"
            if name not in table.column_names and len(rows) == table.num_rows:
                table = table.append_column(name, pa.array(rows, pa.int64()))
        index.append(name)
    return _columns(table, index, options, where)


def _read_text(source: Source, options: Options, where: str, delimiter: str) -> Recording:
    import pyarrow as pa
    from pyarrow import csv

    _check_head(source, where, delimiter)
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    block = min(max(size, 1) + 1, MOST_BYTES)  # types are inferred from the first block alone

    def table(has_names: bool) -> Any:
        try:
            return csv.read_csv(
                opened(source),
                read_options=csv.ReadOptions(block_size=block, autogenerate_column_names=not has_names),
                parse_options=csv.ParseOptions(delimiter=delimiter),
                convert_options=csv.ConvertOptions(null_values=MISSING),
            )
        except pa.ArrowInvalid as error:
            reason = " ".join(str(error).split())
            remedy = (
                "remove lines that are not rows, such as comments, and give all rows as many cells as the first one"
            )
            raise DataError(f"{where}: {reason}; {remedy}", where=where, value=reason, allowed=remedy) from error

    found = table(True)
    try:
        names = list(found.column_names)
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8"
        text = f"{where}: its first row is not UTF-8 ({error.reason}); {remedy}"
        raise DataError(text, where=where, value=error.reason, allowed=remedy) from None
    if not _are_names(names, where):
        found = table(False)
        names = [*numbered(found.num_columns)]
    if names[0].startswith("#"):  # as numpy.savetxt writes a header
        names[0] = names[0].lstrip("# ")
    found = found.rename_columns(names)
    empty = [place for place, name in enumerate(names) if not name and found[place].null_count == found.num_rows]
    index = [name for place, name in enumerate(names) if ROW_NUMBERS.fullmatch(name) and (name or not place)]
    keep = [place for place in range(len(names)) if place not in empty or place == 0]
    return _columns(found.select(keep), index, options, where)


def _check_head(source: Source, where: str, delimiter: str) -> None:
    """Refuse what pyarrow would report as another fault. Raises DataError."""
    if isinstance(source, bytes):
        head = source[:HEAD]
    else:
        with open(source, "rb") as file:
            head = file.read(HEAD)
    if head.startswith(UTF_16):
        raise DataError(f"{where}: UTF-16; save it as UTF-8", where=where, value="UTF-16", allowed="UTF-8")
    lines = [line for line in head.decode("utf-8", "replace").splitlines()[:2] if line]
    if head.startswith(GZIP) or not lines or delimiter in lines[0]:
        return
    numbers = [_is_number(cell) for cell in lines[-1].split()]
    blank = (" ",) if len(numbers) > 1 and all(numbers) else ()
    for other in (";", "\t", "|", ",", *blank):
        if all(other in line for line in lines):
            remedy = {"\t": 'format="tsv"', ",": 'format="csv"'}.get(other)
            remedy = f"give {remedy}" if remedy else "save it with commas between columns and points in numbers"
            text = f"{where}: its columns are separated by {other!r}, not by {delimiter!r}; {remedy}"
            raise DataError(text, where=where, value=other, allowed=remedy)


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


def _columns(table: Any, index: Sequence[str], options: Options, where: str) -> Recording:
    """The channels that are named, or all columns but for the time and the numbers of rows.

    index: columns in which pandas keeps the index of rows. Raises: DataError for a column with something else than
    numbers, with the row and the value of its first one, for two columns of one name, and for a column that may be the
    time where neither `time` nor channels are chosen.
    """
    import pyarrow as pa

    present = table.column_names
    twice = next((name for name in present if present.count(name) > 1), None)
    if twice is not None:
        remedy = "give each column one name of its own, in one row"
        text = f"{where}: {present.count(twice)} columns are called {twice!r}; {remedy}"
        raise DataError(text, where=where, value=twice, allowed=remedy)
    if options.time is not None:
        pick(present, [options.time], where)
    others = [name for name in present if name != options.time]
    if not options.channels:
        others = _without_rows(table, others, index, options, where)
    names = list(options.channels or others)
    pick(present, names, where)
    numeric = tuple(name for name in others if _is_numeric(table, name))
    for name in names:
        if not _is_numeric(table, name):
            raise _no_number(table[name], name, numeric, where)
    if not names:
        text = f"{where}: it has no column beside {options.time or 'the numbers of its rows'}"
        raise DataError(text, where=where, value=options.time)
    columns = [table[name].cast(pa.float64(), safe=False).to_numpy() for name in names]
    values, rate = np.stack(columns, axis=1), None
    if options.time is not None:
        values, rate = on_grid(seconds_of_column(table[options.time], options.time, where), values, where)
    return Recording(values, rate, tuple(names), ("",) * len(names))


def _without_rows(table: Any, names: list[str], index: Sequence[str], options: Options, where: str) -> list[str]:
    """The names without those of numbers of rows. Raises DataError for an index that is not, and for times."""
    import pyarrow as pa

    found = [name for name in names if name not in index]
    for name in names:
        kind = table.schema.field(name).type
        counts = name in index or (min(table.num_rows, len(names)) > 1 and COUNTERS.fullmatch(name.strip()))
        counts = counts and pa.types.is_integer(kind) and not table[name].null_count
        if counts and (np.diff(table[name].to_numpy().astype(np.float64)) == 1).all():
            if name in found:
                found.remove(name)
            continue
        others = [other for other in found if other != name and _is_numeric(table, other)]
        if name in index or (options.time is None and others and _has_times(table, name)):
            raise unchosen_times(name, others, where)
    return found


def _has_times(table: Any, name: str) -> bool:
    """Return True for a column of timestamps, or of numbers that rise and are called a time."""
    import pyarrow as pa

    kind = table.schema.field(name).type
    if pa.types.is_temporal(kind):
        return True
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return numbers and table.num_rows > 1 and is_time_name(name) and bool((np.diff(table[name].to_numpy()) > 0).all())


def _is_numeric(table: Any, name: str) -> bool:
    import pyarrow as pa

    kind, kinds = table.schema.field(name).type, (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_null(kind) or any(is_kind(kind) for is_kind in kinds)


def _no_number(column: Any, name: str, numeric: tuple[str, ...], where: str) -> DataError:
    """The fault of a column. numeric: names of those that have numbers alone."""
    cells = ((row, cell) for row, cell in enumerate(column.to_pylist(), 1) if cell is not None)
    bad = ((row, cell) for row, cell in cells if not isinstance(cell, str) or (cell.strip() and not _is_number(cell)))
    row, cell = next(bad, (None, None))
    what = f"column {name}, data row {row}: {str(cell)[:40]!r} is not a number; correct it, or leave it empty if it is "
    what += "missing"
    if row is None:  # numbers, but stored as text
        what = f"column {name} has {column.type}, not numbers; store it as numbers"
    choose = f"; or choose channels, as in channels={json.dumps(numeric)}" if numeric else ""
    return DataError(f"{where}: {what}{choose}", where=where, value=(name, row, cell), allowed=numeric)
