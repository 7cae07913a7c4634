"""The input of `octavo tokenize`: files of documents, cut into units that a process can read on its own.

The documents of a unit always have the same numbers, whichever process reads it; order and prefixes depend on nothing
else.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parallel.errors import one_of
from trainer.corpora.tokenize.datasets_private import selects_rows
from trainer.data.errors import DataError

UNIT = 64 << 20  # approximate bytes of a file in one unit
CHOOSE = "choose one with --field or --origin"
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
SUFFIXES = (*JSON_SUFFIXES, *(f"{suffix}.gz" for suffix in JSON_SUFFIXES), ".parquet", ".arrow")
EXPANDS = {"lines": 1, "gzip": 5, "parquet": 1, "arrow": 1}  # characters of text per byte of a unit, at most

Kind = Literal["lines", "gzip", "parquet", "arrow"]


@dataclass(frozen=True)
class Unit:
    kind: Kind
    path: str
    first: int  # lines: bytes, parquet: row groups; first and last are 0 if the unit is a whole file
    last: int
    nbytes: int  # for progress

    @property
    def text_bytes(self) -> int:
        """The most text that the unit can have, in bytes."""
        return self.nbytes * EXPANDS[self.kind]


def find_files(paths: Sequence[Path], split: str = "train") -> list[Path]:
    """Files to read, in order: files as given, those of directories by name, datasets saved by `save_to_disk`."""
    found: list[Path] = []
    for path in paths:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found += _saved_dataset(path, split)
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
            if not inside:
                raise _bad(path, f"has no file that ends in {one_of(SUFFIXES)}", allowed=SUFFIXES)
            found += inside
        elif not path.is_file():
            raise _bad(path, "does not exist", allowed="an existing file or directory")
        elif not path.name.endswith(SUFFIXES):
            remedy = f"use a file that ends in {one_of(SUFFIXES)}, or --builder for other formats"
            raise _bad(path, f"cannot be read directly: {remedy}", value=path.suffix, allowed=SUFFIXES)
        else:
            found.append(path)
    twice = {path for path in found if found.count(path) > 1} if len(set(found)) < len(found) else set()
    if twice:
        raise _bad(min(twice), "is given twice", allowed="give each file once")
    return found


def _saved_dataset(path: Path, split: str) -> list[Path]:
    import datasets

    try:
        if (path / "dataset_dict.json").is_file():
            names = json.loads((path / "dataset_dict.json").read_text())["splits"]
            if split not in names:
                raise DataError(
                    f"{path} has no split {split}; use --split {' or '.join(names)}",
                    where="--split",
                    value=split,
                    allowed=tuple(names),
                )
            path = path / split
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are of these, too
        problem = " ".join(str(error).split())
        raise _bad(path, f"is not a dataset written by save_to_disk: {problem}", value=problem) from error
    return _arrow_files(saved, str(path))


def built_dataset(builder: str, config: str | None, files: Sequence[Path], split: str) -> list[Path]:
    """The Arrow files that `datasets.load_dataset` makes with a builder (csv, text, ...) or for a dataset's name."""
    import datasets

    try:
        loaded = datasets.load_dataset(builder, config, data_files=[str(file) for file in files] or None, split=split)
    except Exception as error:  # every builder has its own
        problem = " ".join(str(error).split())
        raise DataError(
            f"--builder {builder}: datasets.load_dataset failed: {problem}",
            where="--builder",
            value=builder,
            allowed=f"arguments that datasets.load_dataset accepts: {problem}",
        ) from error
    return _arrow_files(loaded, f"--builder {builder}")


def _arrow_files(dataset: Any, name: str) -> list[Path]:
    if selects_rows(dataset):
        remedy = "save it again after dataset.flatten_indices()"
        raise _bad(name, f"is a selection of rows: {remedy}", allowed=remedy)
    return [Path(file["filename"]) for file in dataset.cache_files]


def units_of(files: Sequence[Path]) -> list[Unit]:
    """Cut files into units. Raises DataError for an empty file, or one whose content does not match its suffix."""
    units: list[Unit] = []
    for path in files:
        size = os.path.getsize(path)
        if size == 0:
            raise _bad(path, "is empty", value=0, allowed="a file with documents")
        if path.name.endswith(JSON_SUFFIXES):
            units += (
                Unit("lines", str(path), at, min(at + UNIT, size), min(UNIT, size - at)) for at in range(0, size, UNIT)
            )
        elif path.name.endswith(".gz"):
            units.append(Unit("gzip", str(path), 0, 0, size))
        elif path.name.endswith(".arrow"):
            units.append(Unit("arrow", str(path), 0, 0, size))
        else:
            units += _row_groups(path)
    return units


def _row_groups(path: Path) -> Iterator[Unit]:
    file = _parquet(path)
    first, size = 0, 0
    for group in range(file.num_row_groups):
        size += file.metadata.row_group(group).total_byte_size
        if size >= UNIT or group == file.num_row_groups - 1:
            yield Unit("parquet", str(path), first, group + 1, size)
            first, size = group + 1, 0


def documents(unit: Unit, field: str, origin: str | None = None) -> Iterator[tuple[int, str, str]]:
    """(bytes of the unit read so far, origin, text) for every document of a unit. Raises DataError.

    field, origin: the fields or columns with the text and with its origin; without `origin` each text is its own.
    """
    fields = [field] if origin is None else [field, origin]
    try:
        found = _json_lines(unit, fields) if unit.kind in ("lines", "gzip") else _columns(unit, fields)
        for read, values in found:
            yield read, values[-1], values[0]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _bad(unit.path, f"is truncated or not a gzip file: {error}", value=str(error)) from error
    except OSError as error:
        raise _bad(unit.path, f"cannot be read: {error.strerror or error}", value=error.strerror) from error


def _json_lines(unit: Unit, fields: list[str]) -> Iterator[tuple[int, Sequence[str]]]:
    with open(unit.path, "rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if unit.kind == "gzip" else raw
        if unit.first:
            raw.seek(unit.first - 1)
            raw.readline()  # a line belongs to the unit in which it starts
        lines = 0
        while unit.kind == "gzip" or raw.tell() < unit.last:
            at = raw.tell()
            line = file.readline()
            if not line:
                return
            lines += 1
            if line.isspace():
                continue
            try:
                yield raw.tell() - unit.first, _strings_of(line, fields)
            except ValueError as error:
                number = lines if unit.kind == "gzip" else 1 + _newlines_before(unit.path, at)
                where = f"{unit.path}, line {number}"
                raise DataError(
                    f"{where}: {error}", where=where, value=str(error), allowed=f"correct the line, or {CHOOSE}"
                ) from None


def _strings_of(line: bytes, fields: list[str]) -> list[str]:
    """The fields of a line. Raises ValueError with the reason."""
    if b"\0" in line:  # json would take it for UTF-16 or UTF-32, with a misleading message
        raise ValueError(f"a NUL at byte {line.index(0) + 1}: the file is incomplete or not UTF-8")
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos + 1})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    except RecursionError:
        raise ValueError("not a record of text: it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError('not a JSON object; each line has one document, as in {"text": "..."}')
    for field in fields:
        if field not in record:
            raise ValueError(f"no field {field!r}; it has {', '.join(map(repr, record)) or 'none'}: {CHOOSE}")
        if not isinstance(record[field], str):
            raise ValueError(f"the field {field!r} is not a string")
        try:
            record[field].encode()
        except UnicodeEncodeError as error:  # JSON can contain strings that are not text
            half = f"\\u{ord(record[field][error.start]):04x}"
            raise ValueError(f"the field {field!r} has {half}, half of a surrogate pair") from None
    return [record[field] for field in fields]


def _newlines_before(path: str, end: int) -> int:
    with open(path, "rb") as file:
        count = 0
        while end > 0:
            block = file.read(min(end, 1 << 20))
            count += block.count(b"\n")
            end -= len(block)
    return count


def _columns(unit: Unit, fields: list[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """(bytes read so far, fields) for every row of a Parquet or Arrow file."""
    import pyarrow as pa

    batches, names, total = _batches(unit, fields)
    for field in fields:
        if field not in names:
            raise _bad(unit.path, f"has no column {field!r}; it has {', '.join(names)}: {CHOOSE}", field, tuple(names))
    row = 0
    try:
        for batch in batches:
            columns = []
            for field in fields:
                column = batch.column(batch.schema.get_field_index(field))
                if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                    raise _bad(unit.path, f"has {column.type}, not strings, in the column {field!r}", field, CHOOSE)
                columns.append(column.to_pylist())
            for values in zip(*columns, strict=True):
                if None in values:
                    missing = fields[values.index(None)]
                    where = f"{unit.path}, row {row + 1} of unit {unit.first}"
                    raise _bad(where, f"has no {missing!r}", missing, "fill or remove the row")
                row += 1
                yield int(unit.nbytes * row / total) if total else 0, values
    except pa.ArrowException as error:
        raise _bad(unit.path, f"is truncated or damaged: {error}", value=str(error)) from error


def _batches(unit: Unit, fields: list[str]) -> tuple[Iterator[Any], list[str], int]:
    """(record batches, names of the columns, number of rows or 0 if unknown)."""
    import pyarrow as pa

    if unit.kind == "parquet":
        file = _parquet(Path(unit.path))
        names, groups = file.schema_arrow.names, [*range(unit.first, unit.last)]
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        columns = [field for field in fields if field in names]
        return file.iter_batches(batch_size=1024, row_groups=groups, columns=columns), names, rows
    source = pa.memory_map(unit.path)
    try:
        stream = pa.ipc.open_stream(source)
        return iter(stream), stream.schema.names, 0
    except pa.ArrowInvalid:
        source.seek(0)
    try:
        table = pa.ipc.open_file(source)
    except pa.ArrowInvalid as error:
        raise _bad(unit.path, f"is not an Arrow file: {error}", value=str(error)) from error
    return (table.get_batch(number) for number in range(table.num_record_batches)), table.schema.names, 0


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _bad(path, f"is not a Parquet file: {error}", value=str(error)) from error


def _bad(path: Path | str, problem: str, value: Any = None, allowed: Any = "an intact file") -> DataError:
    """An error about an input file."""
    return DataError(f"{path} {problem}", where=str(path), value=value, allowed=allowed)
