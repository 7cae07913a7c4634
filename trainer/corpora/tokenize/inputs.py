"""What is tokenised: files of documents, cut into units that a process can read on its own.

A unit's documents have the same numbers whoever reads it and whenever, which is all that order and prefixes rest on.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.data.errors import DataError

UNIT = 64 << 20  # bytes of a file that one unit is about
CHOOSE = "choose one with --field, or --origin"
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
SUFFIXES = (*JSON_SUFFIXES, *(f"{suffix}.gz" for suffix in JSON_SUFFIXES), ".parquet", ".arrow")
EXPANDS = {"lines": 1, "gzip": 5, "parquet": 1, "arrow": 1}  # text per byte that a unit counts, at most

Kind = Literal["lines", "gzip", "parquet", "arrow"]


@dataclass(frozen=True)
class Unit:
    kind: Kind
    path: str
    first: int  # lines: bytes, parquet: row groups; 0 and 0 where a unit is a whole file
    last: int
    nbytes: int  # for progress

    @property
    def text_bytes(self) -> int:
        """How much text it may hold."""
        return self.nbytes * EXPANDS[self.kind]


def find_files(paths: Sequence[Path], split: str = "train") -> list[Path]:
    """Files to read, in order: files as named, directories of them by name, datasets saved by `save_to_disk`."""
    found: list[Path] = []
    for path in paths:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found += _saved_dataset(path, split)
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
            if not inside:
                raise DataError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
            found += inside
        elif not path.is_file():
            raise DataError(f"{path}: no such file or directory")
        elif not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: use a file that ends in {', '.join(SUFFIXES)}, or --builder for any other")
        else:
            found.append(path)
    twice = {path for path in found if found.count(path) > 1} if len(set(found)) < len(found) else set()
    if twice:
        raise DataError(f"{min(twice)} is named twice")
    return found


def _saved_dataset(path: Path, split: str) -> list[Path]:
    import datasets

    try:
        if (path / "dataset_dict.json").is_file():
            names = json.loads((path / "dataset_dict.json").read_text())["splits"]
            if split not in names:
                raise DataError(f"{path} has no split {split}; use --split {' or '.join(names)}")
            path = path / split
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are of these, too
        raise DataError(f"{path} is no dataset that save_to_disk wrote: {' '.join(str(error).split())}") from error
    return _arrow_files(saved, str(path))


def built_dataset(builder: str, config: str | None, files: Sequence[Path], split: str) -> list[Path]:
    """The Arrow files of what `datasets.load_dataset` makes of a builder (csv, text, ...) or a dataset's name."""
    import datasets

    try:
        loaded = datasets.load_dataset(builder, config, data_files=[str(file) for file in files] or None, split=split)
    except Exception as error:  # every builder has its own
        raise DataError(f"--builder {builder}: datasets.load_dataset failed: {' '.join(str(error).split())}") from error
    return _arrow_files(loaded, f"--builder {builder}")


def _arrow_files(dataset: Any, what: str) -> list[Path]:
    if dataset._indices is not None:  # rows are taken from the files in another order, or not all
        raise DataError(f"{what} is a selection of rows: save it again after dataset.flatten_indices()")
    return [Path(file["filename"]) for file in dataset.cache_files]


def units_of(files: Sequence[Path]) -> list[Unit]:
    """Cut files into units. Raises DataError for an empty file or one that is not what its name says."""
    units: list[Unit] = []
    for path in files:
        size = os.path.getsize(path)
        if size == 0:
            raise DataError(f"{path} is empty")
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
    """(bytes of the unit that were read so far, origin, text) of every document of a unit. Raises DataError.

    field, origin: the fields or columns with the text and with its origin; without `origin` a text is its own.
    """
    fields = [field] if origin is None else [field, origin]
    try:
        found = _json_lines(unit, fields) if unit.kind in ("lines", "gzip") else _columns(unit, fields)
        for read, values in found:
            yield read, values[-1], values[0]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{unit.path} is truncated or no gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{unit.path} cannot be read: {error.strerror or error}") from error


def _json_lines(unit: Unit, fields: list[str]) -> Iterator[tuple[int, Sequence[str]]]:
    with open(unit.path, "rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if unit.kind == "gzip" else raw
        if unit.first:
            raw.seek(unit.first - 1)
            raw.readline()  # a line belongs to the unit in which it begins
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
                raise DataError(f"{unit.path}, line {number}: {error}") from None


def _strings_of(line: bytes, fields: list[str]) -> list[str]:
    """ValueError says what is wrong with a line."""
    if b"\0" in line:  # json would take it for UTF-16 or UTF-32, and say something of their bytes
        raise ValueError(f"a NUL at byte {line.index(0) + 1}: the file was not written to its end, or is no UTF-8")
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at character {error.pos + 1})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start + 1}") from None
    except RecursionError:
        raise ValueError("no record of text: it is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError('no JSON object; each line holds one document, as in {"text": "..."}')
    for field in fields:
        if field not in record:
            raise ValueError(f"no field {field!r}; it has {', '.join(map(repr, record)) or 'none'}: {CHOOSE}")
        if not isinstance(record[field], str):
            raise ValueError(f"the field {field!r} is no string")
        try:
            record[field].encode()
        except UnicodeEncodeError as error:  # JSON can write what is no text
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
    """Documents of a Parquet or Arrow file's columns."""
    import pyarrow as pa

    batches, names, total = _batches(unit, fields)
    for field in fields:
        if field not in names:
            raise DataError(f"{unit.path} has no column {field!r}; it has {', '.join(names)}: {CHOOSE}")
    row = 0
    try:
        for batch in batches:
            columns = []
            for field in fields:
                column = batch.column(batch.schema.get_field_index(field))
                if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                    raise DataError(f"{unit.path}: the column {field!r} holds {column.type}, not strings")
                columns.append(column.to_pylist())
            for values in zip(*columns, strict=True):
                if None in values:
                    missing = fields[values.index(None)]
                    raise DataError(f"{unit.path}: row {row + 1} of the unit has no {missing!r}")
                row += 1
                yield int(unit.nbytes * row / total) if total else 0, values
    except pa.ArrowException as error:
        raise DataError(f"{unit.path} is truncated or damaged: {error}") from error


def _batches(unit: Unit, fields: list[str]) -> tuple[Iterator[Any], list[str], int]:
    """Record batches, names of the columns, and the number of rows where it is known."""
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
        raise DataError(f"{unit.path} is no Arrow file: {error}") from error
    return (table.get_batch(number) for number in range(table.num_record_batches)), table.schema.names, 0


def _parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file: {error}") from error
