"""Parquet and Arrow files: their columns of text, whichever of Arrow's types of strings they have."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainer.corpora.tokenize.units import Unit, bad, choose

ROWS_WITH_MEDIA = 16  # read at one time: a row may have megabytes


def columns(unit: Unit, fields: list[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """(bytes read so far, fields) for every row of a unit. Raises DataError."""
    import pyarrow as pa

    batches, schema, total = _batches(unit, fields)
    for field in fields:
        _check_column(unit.path, schema, field, choose(fields, field))
    row = 0
    try:
        for batch in batches:
            found = [_strings(unit, batch, field, row) for field in fields]
            for values in zip(*found, strict=True):
                if None in values:
                    missing = fields[values.index(None)]
                    raise bad(place(unit, row), f"has no {missing!r}", missing, "fill or remove the row")
                row += 1
                yield int(unit.nbytes * row / total) if total else 0, values
    except pa.ArrowException as error:
        raise bad(unit.path, f"is truncated or damaged: {error}", value=str(error)) from error


def records(
    unit: Unit, fields: list[str], optional: list[str], origin: str | None
) -> Iterator[tuple[int, Callable[[], str], list[Any]]]:
    """As `inputs.records`, for columns, which must all be there."""
    import pyarrow as pa

    names = [*fields, *optional, *([origin] if origin is not None else [])]
    batches, schema, total = _batches(unit, names, ROWS_WITH_MEDIA)
    for name in names:
        _check_column(unit.path, schema, name, choose(fields if name == origin else [name], name), text=name == origin)
    row = 0
    try:
        for batch in batches:
            for at in range(0, batch.num_rows, ROWS_WITH_MEDIA):
                some = batch.slice(at, ROWS_WITH_MEDIA)
                found = [some.column(some.schema.get_field_index(field)).to_pylist() for field in names]
                for values in zip(*found, strict=True):
                    where = partial(place, unit, row)
                    if origin is not None and values[-1] is None:
                        raise bad(where(), f"has no {origin!r}", origin, "fill or remove the row")
                    row += 1
                    yield int(unit.nbytes * row / total) if total else 0, where, list(values)
    except UnicodeDecodeError as error:
        raise bad(place(unit, row), f"or a row after it has invalid UTF-8 ({error.reason})", error.reason) from None
    except pa.ArrowException as error:
        raise bad(unit.path, f"is truncated or damaged: {error}", value=str(error)) from error


def place(unit: Unit, row: int) -> str:
    """The name of a row of a unit, counted from 0 there, by its number in the file."""
    before = unit.first
    if unit.kind == "parquet":
        metadata = open_parquet(Path(unit.path)).metadata
        before = sum(metadata.row_group(group).num_rows for group in range(unit.first))
    return f"{unit.path}, row {before + row + 1}"


def _check_column(path: str, schema: Any, field: str, choice: str, *, text: bool = True) -> None:
    import pyarrow as pa

    count = schema.names.count(field)
    if not count:
        problem = f"has no column {field!r}; it has {', '.join(schema.names)}; {choice}"
        raise bad(path, problem, field, tuple(schema.names))
    if count > 1:
        remedy = "give them names of their own"
        raise bad(path, f"has {count} columns {field!r}: {remedy}", field, remedy)
    if not text:
        return
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    views = getattr(pa.types, "is_string_view", lambda kind: False)  # from pyarrow 16 on
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or views(kind)):
        raise bad(path, f"has {kind}, not strings, in the column {field!r}", field, choice)


def _strings(unit: Unit, batch: Any, field: str, row: int) -> list[str | None]:
    column = batch.column(batch.schema.get_field_index(field))
    try:
        found: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:
        for number in range(len(column)):
            try:
                column[number].as_py()
            except UnicodeDecodeError as error:
                text = f"has invalid UTF-8 at byte {error.start + 1} of {field!r}"
                raise bad(place(unit, row + number), text, field, "replace or remove the row") from None
        raise
    return found


def _batches(unit: Unit, fields: list[str], at_once: int = 1024) -> tuple[Iterator[Any], Any, int]:
    """(record batches, schema, number of rows or 0 if unknown)."""
    if unit.kind == "parquet":
        file = open_parquet(Path(unit.path))
        schema, groups = file.schema_arrow, [*range(unit.first, unit.last)]
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        chosen = [field for field in fields if schema.names.count(field) == 1]
        return file.iter_batches(batch_size=at_once, row_groups=groups, columns=chosen), schema, rows
    batches, schema = open_arrow(Path(unit.path))
    if unit.last:
        return _between(batches, unit.first, unit.last), schema, unit.last - unit.first
    return batches, schema, 0


def _between(batches: Iterator[Any], first: int, last: int) -> Iterator[Any]:
    start = 0
    for batch in batches:
        low, high = max(first - start, 0), min(last - start, batch.num_rows)
        if low < high:
            yield batch.slice(low, high - low)
        start += batch.num_rows
        if start >= last:
            return


def open_arrow(path: Path) -> tuple[Iterator[Any], Any]:
    """(record batches, schema) of an Arrow file or stream. Raises DataError."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        stream = pa.ipc.open_stream(source)
        return iter(stream), stream.schema
    except pa.ArrowInvalid:
        source.seek(0)
    try:
        table = pa.ipc.open_file(source)
    except pa.ArrowInvalid as error:
        raise bad(path, f"is not an Arrow file: {error}", value=str(error)) from error
    return (table.get_batch(number) for number in range(table.num_record_batches)), table.schema


def row_groups(path: Path, nbytes: int) -> Iterator[Unit]:
    """The units of a Parquet file, of about `nbytes` each. Raises DataError."""
    file = open_parquet(path)
    first, size = 0, 0
    for group in range(file.num_row_groups):
        size += file.metadata.row_group(group).total_byte_size
        if size >= nbytes or group == file.num_row_groups - 1:
            yield Unit("parquet", str(path), first, group + 1, size)
            first, size = group + 1, 0


def open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise bad(path, f"is not a Parquet file: {error}", value=str(error)) from error
