"""Readers of benchmark files: rows of JSON, JSONL, Parquet, CSV and TSV, with errors that name file, row and column."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation.suite import SuiteError
from trainer.storage.json_text import is_finite, read_json

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")


@dataclass(frozen=True)
class Row:
    """One row of a file: `cells` by column. number: of .jsonl the line, of other files the row, from 1.

    Published files have NaN in columns that nothing reads: cells are looked at when a getter reads them. The getters
    raise SuiteError, which names the file, the row and the column, for a cell that is missing or of another
    kind than they return."""

    path: Path
    number: int
    cells: Mapping[str, Any]

    def text(self, column: str, missing: str | None = None) -> str:
        """A text that is not blank. missing: returned for a cell that is blank, null or not there."""
        found = self.cells.get(column)
        if missing is not None and (found is None or (isinstance(found, str) and not found.strip())):
            return missing
        if not isinstance(found, str) or not found.strip():
            raise self.wrong(column, "a text")
        return found

    def name(self, column: str) -> str:
        """A text that is not blank, or a whole number, as text: ids and short answers."""
        found = self.cells.get(column)
        return str(found) if isinstance(found, int) and not isinstance(found, bool) else self.text(column)

    def choice(self, column: str, allowed: Collection[str]) -> str:
        """One of `allowed`."""
        found = self.cells.get(column)
        if not isinstance(found, str) or found not in allowed:
            raise self.wrong(column, tuple(allowed))
        return found

    def numeral(self, column: str) -> float:
        """A finite number, or a text that is one."""
        found = self.cells.get(column)
        try:
            value = float(found) if isinstance(found, str) else _plain(found)
        except (TypeError, ValueError):
            raise self.wrong(column, "a number") from None
        if not math.isfinite(value):
            raise self.wrong(column, "a finite number")
        return value

    def numbers(self, column: str, count: int) -> list[float]:
        """A list of `count` finite numbers, as they are."""
        found = self.cells.get(column)
        if not isinstance(found, list) or len(found) != count or not all(map(_is_finite, found)):
            raise self.wrong(column, f"a list of {count} numbers")
        return found

    def flag(self, column: str) -> bool:
        """True or false."""
        found = self.cells.get(column)
        if not isinstance(found, bool):
            raise self.wrong(column, "true or false")
        return found

    def texts(self, column: str) -> list[str]:
        """A list of one text or more."""
        found = self.cells.get(column)
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise self.wrong(column, "a list of texts")
        return found

    def mapping(self, column: str) -> dict[str, Any]:
        """An object with names, whose numbers are finite."""
        found = self.value(column)
        if not isinstance(found, dict):
            raise self.wrong(column, "an object with names")
        return found

    def value(self, column: str) -> Any:
        """Whatever is there, but for NaN and infinities."""
        found = self.cells.get(column)
        if not is_finite(found):
            raise self.wrong(column, "a value whose numbers are finite")
        return found

    def said(self, column: str, key: str, count: int) -> list[str]:
        """The texts under `key` of the first `count` objects of a list: the turns of a conversation."""
        found = self.cells.get(column)
        allowed = f"a list of {count} or more objects with a text {key}"
        if not isinstance(found, list) or len(found) < count:
            raise self.wrong(column, allowed)
        texts = [one.get(key) if isinstance(one, dict) else None for one in found[:count]]
        said = [text for text in texts if isinstance(text, str) and text.strip()]
        if len(said) < count:
            raise self.wrong(column, allowed)
        return said

    def wrong(self, column: str, allowed: Any) -> SuiteError:
        """The error for a cell that has to be something else."""
        value = self.cells.get(column)
        wanted = " or ".join(allowed) if isinstance(allowed, tuple) else allowed
        text = f"{self.path}:{self.number}: {column} has to be {wanted}, not {_shown(value)}"
        return SuiteError(text, where=f"{self.path}:{self.number}:{column}", value=value, allowed=allowed)

    def fault(self, what: str, *, value: Any = None, allowed: Any = None) -> SuiteError:
        """The error for a row whose cells do not fit together. what: such as "3 constraints have 2 kwargs"."""
        text = f"{self.path}:{self.number}: {what}"
        return SuiteError(text, where=f"{self.path}:{self.number}", value=value, allowed=allowed)


def _plain(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def find_file(directory: Path, *names: str) -> Path:
    """The first of `names` that is a file in `directory`; * and ? match as in a shell, and the first match in the order
    of names is taken. Raises SuiteError where none is."""
    return find_files(directory, *names)[0]


def find_files(directory: Path, *names: str) -> list[Path]:
    """All files of the first of `names` that matches any, sorted. Raises SuiteError where none does."""
    for name in names:
        if found := _matches(directory, name):
            return found
    raise _none_of(directory, names)


def find_all(directory: Path, *names: str) -> list[Path]:
    """The files of all `names`, sorted. Raises SuiteError where there is none, and for two that differ only in their
    suffix."""
    found = sorted({path for name in names for path in _matches(directory, name)})
    if not found:
        raise _none_of(directory, names)
    of_stem: dict[str, Path] = {}
    for path in found:
        if (other := of_stem.setdefault(path.stem, path)) != path:
            text = f"{path}: there is {other.name} as well; remove or rename one of them"
            raise SuiteError(text, where=str(path), value=other.name, allowed="one file of each name")
    return found


def _matches(directory: Path, name: str) -> list[Path]:
    return sorted(path for path in directory.glob(name) if path.is_file())


def _none_of(directory: Path, names: tuple[str, ...]) -> SuiteError:
    wanted = " or ".join(str(directory / name) for name in names)
    value = "other files" if directory.is_dir() else "no such directory"
    text = f"{directory}: {value if directory.is_dir() else f'there is {value}'}; put {wanted} there"
    return SuiteError(text, where=str(directory), value=value, allowed=names)


def read_rows(path: Path, *required: str) -> Iterator[Row]:
    """The rows of a file: of .jsonl one a line, of .json the list in it (or the lists that are its values, one after
    another), of .parquet, .csv and .tsv the rows.

    required: columns that each row must have. Raises SuiteError with the file and the row's number."""
    for number, cells in _numbered(path):
        row = Row(path, number, cells)
        if not isinstance(cells, dict):
            raise row.fault(f"a row has to be an object with names, not {_shown(cells)}", value=cells, allowed="names")
        if missing := [name for name in required if name not in cells]:
            what = f"the row has no {', '.join(missing)}; it has {', '.join(map(str, cells)) or 'nothing'}"
            raise row.fault(what, value=sorted(map(str, cells)), allowed=required)
        yield row


def _numbered(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix not in SUFFIXES:
        raise SuiteError(
            f"{path}: octavo reads {', '.join(SUFFIXES)}", where=str(path), value=path.suffix, allowed=SUFFIXES
        )
    try:
        yield from _rows(path)
    except FileNotFoundError:
        text = f"{path}: there is no such file; put it there"
        raise SuiteError(text, where=str(path), allowed="the benchmark's file") from None
    except (ValueError, csv.Error, OSError) as error:  # ValueError: JSON, UTF-8 and Parquet that cannot be parsed
        text = f"{path} cannot be read: {error}; copy it again"
        raise SuiteError(text, where=str(path), value=str(error), allowed="the file as published") from None


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".jsonl":
        return _lines(path)
    if path.suffix == ".json":
        return iter(enumerate(_listed(read_json(path.read_bytes(), unique=True, not_numbers=True)), 1))
    return iter(enumerate(_parquet(path) if path.suffix == ".parquet" else _table(path), 1))


def _listed(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        return [row for rows in content.values() for row in rows]
    raise ValueError("it has to hold a list of rows")


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, read_json(line, unique=True, not_numbers=True)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None


def _table(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # images in base64 exceed the default
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        for number, row in enumerate(table, 1):
            if None in row or None in row.values():
                columns = len(table.fieldnames or ())
                raise ValueError(f"row {number} does not have the {columns} cells that the first line names")
            yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
