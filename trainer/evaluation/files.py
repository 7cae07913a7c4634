"""Readers of benchmark files: rows of JSON, JSONL, Parquet, CSV and TSV, with errors that name the file and the row."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.evaluation.suite import SuiteError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")


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
    another), of .parquet, .csv and .tsv the rows, whose cells are text in the last two.

    required: columns that each row must have. Raises SuiteError with the file and the row's number, from 1."""
    for number, row in _numbered(path):
        if not isinstance(row, dict):
            text = f"{path}:{number}: a row has to be an object with names, not {type(row).__name__}"
            raise SuiteError(text, where=str(path), value=row, allowed="an object")
        if missing := [name for name in required if name not in row]:
            text = (
                f"{path}:{number}: the row has no {', '.join(missing)}; it has {', '.join(map(str, row)) or 'nothing'}"
            )
            raise SuiteError(text, where=str(path), value=sorted(map(str, row)), allowed=required)
        yield row


def bad_row(path: Path, number: int, what: str, *, value: Any = None, allowed: Any = None) -> SuiteError:
    """The error for a row whose content cannot be used. number: from 1. what: such as "answer=Q is not an option"."""
    return SuiteError(f"{path}:{number}: {what}", where=str(path), value=value, allowed=allowed)


def _numbered(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix not in SUFFIXES:
        raise SuiteError(
            f"{path}: octavo reads {', '.join(SUFFIXES)}", where=str(path), value=path.suffix, allowed=SUFFIXES
        )
    try:
        yield from enumerate(_rows(path), 1)
    except FileNotFoundError:
        text = f"{path}: there is no such file; put it there"
        raise SuiteError(text, where=str(path), allowed="the benchmark's file") from None
    except (ValueError, csv.Error, OSError) as error:  # ValueError: JSON, UTF-8 and Parquet that cannot be parsed
        text = f"{path} cannot be read: {error}; copy it again"
        raise SuiteError(text, where=str(path), value=str(error), allowed="the file as published") from None


def _rows(path: Path) -> Iterable[Any]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".json":
        with open(path, encoding="utf-8-sig") as file:
            return _listed(json.load(file))
    return _lines(path) if path.suffix == ".jsonl" else _table(path)


def _listed(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        return [row for rows in content.values() for row in rows]
    raise ValueError("it has to hold a list of rows")


def _lines(path: Path) -> Iterator[Any]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None


def _table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # images in base64 exceed the default
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
