"""The input of `octavo tokenize`: files of documents, cut into units that a process can read on its own.

The documents of a unit always have the same numbers, whichever process reads it; order and prefixes depend on nothing
else.
"""

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from parallel.errors import one_of
from trainer.corpora.tokenize import columns
from trainer.corpora.tokenize.built import is_saved, no_splits, saved_dataset
from trainer.corpora.tokenize.units import CHOOSE, Rows, Unit, bad, choose
from trainer.data.errors import DataError
from trainer.data.pairs.index import INDEX

UNIT = 64 << 20  # approximate bytes of a file in one unit
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
SUFFIXES = (*JSON_SUFFIXES, *(f"{suffix}.gz" for suffix in JSON_SUFFIXES), ".parquet", ".arrow")
TAR = ".tar"
ARRAY = "a JSON array; each line has one document: write its objects on lines of their own, as jq -c '.[]' does"
DIGITS = 18  # of whole numbers that stay whole: those of 64 bits

OnSkipped = Callable[[Path, str], None]  # called with a file or directory that is not read, and the reason


def find_files(
    paths: Sequence[Path],
    split: str | None = None,
    skipped: OnSkipped = lambda path, why: None,
    *,
    suffixes: Sequence[str] = SUFFIXES,
) -> list[Path]:
    """Files to read, in order: files as given, those of directories by name, datasets saved by `save_to_disk`.

    Links are followed. split: of saved datasets; None reads `train`. skipped: called for the hidden files of a
    directory, and for those with other suffixes or about other files. suffixes: of the files that are read. Raises
    DataError, also for a link to nothing and for a file that comes twice.
    """
    found: list[Path] = []
    for path in paths:
        if is_saved(path):
            found += saved_dataset(path, split)
        elif path.is_dir():
            inside = list(_inside(path, (), split, skipped, tuple(suffixes)))
            if not inside:
                raise bad(path, f"has no file that ends in {one_of(suffixes)}", allowed=tuple(suffixes))
            found += inside
        elif not path.is_file():
            raise bad(path, "does not exist", allowed="an existing file or directory")
        elif not path.name.lower().endswith(tuple(suffixes)):
            remedy = f"use a file that ends in {one_of(suffixes)}, or --builder for other formats"
            raise bad(path, f"cannot be read directly: {remedy}", value=path.suffix, allowed=tuple(suffixes))
        else:
            _takes_no_split(path, split)
            found.append(path)
    seen: dict[tuple[int, int], Path] = {}
    for path in found:
        stat = path.stat()
        if earlier := seen.get((stat.st_dev, stat.st_ino)):
            also = "" if earlier == path else f", also as {earlier}"
            raise bad(path, f"is given twice{also}", allowed="give each file once")
        seen[stat.st_dev, stat.st_ino] = path
    return found


def _inside(
    directory: Path, above: tuple[Path, ...], split: str | None, skipped: OnSkipped, suffixes: tuple[str, ...]
) -> Iterator[Path]:
    """The files of a directory and of those in it, by name."""
    real = directory.resolve()
    if real in above:
        remedy = "remove the link"
        raise bad(directory, f"is a link to a directory that contains it: {remedy}", str(real), remedy)
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise bad(directory, f"cannot be read: {error.strerror}", error.strerror, "a readable directory") from error
    for path in (directory / name for name in names):
        if path.name.startswith("."):
            skipped(path, "hidden")
        elif not path.exists():
            target = os.readlink(path) if path.is_symlink() else None
            remedy = "complete the download, or remove the link"
            raise bad(path, f"is a link to {target}, which does not exist: {remedy}", target, remedy)
        elif path.is_dir() and path.name == INDEX:
            skipped(path, "an index of pairs")
        elif path.is_dir():
            inner = (*above, real), split, skipped, suffixes
            yield from saved_dataset(path, split) if is_saved(path) else _inside(path, *inner)
        elif not path.name.lower().endswith(suffixes):
            skipped(path, "another suffix")
        elif not path.is_file():
            raise bad(path, "is not a regular file", allowed="a file")
        elif _is_status(path):
            skipped(path, "the status of links")
        else:
            _takes_no_split(path, split)
            yield path


def _is_status(path: Path) -> bool:
    """Return True for what img2dataset writes about the samples of a file beside it, failed ones included."""
    name = path.name
    if name.endswith("_stats.json"):
        stem = name.removesuffix("_stats.json")
        return any(path.with_name(stem + suffix).is_file() for suffix in (TAR, ".parquet"))
    return name.endswith(".parquet") and path.with_suffix(TAR).is_file()


def _takes_no_split(path: Path, split: str | None) -> None:
    if split is not None:
        raise no_splits(path, split, "is read as a whole (--builder parquet or json reads a part)")


def units_of(files: Sequence[Path | Rows]) -> list[Unit]:
    """Cut files into units. Raises DataError for an empty file, or one whose content does not match its suffix."""
    units: list[Unit] = []
    for item in files:
        if isinstance(item, Rows):
            size = os.path.getsize(item.path)
            units.append(Unit("arrow", str(item.path), item.first, item.last, size))
            continue
        path, size, name = item, os.path.getsize(item), item.name.lower()
        if size == 0:
            raise bad(path, "is empty", value=0, allowed="a file with documents")
        if name.endswith(JSON_SUFFIXES):
            units += (
                Unit("lines", str(path), at, min(at + UNIT, size), min(UNIT, size - at)) for at in range(0, size, UNIT)
            )
        elif name.endswith(".gz"):
            units.append(Unit("gzip", str(path), 0, 0, size))
        elif name.endswith(TAR):
            units.append(Unit("tar", str(path), 0, 0, size))
        elif name.endswith(".arrow"):
            units.append(Unit("arrow", str(path), 0, 0, size))
        else:
            units += columns.row_groups(path, UNIT)
    return units


def documents(unit: Unit, field: str, origin: str | None = None) -> Iterator[tuple[int, str, str]]:
    """(bytes of the unit read so far, origin, text) for every document of a unit. Raises DataError.

    field, origin: the fields or columns with the text and with its origin; without `origin` each text is its own.
    """
    fields = [field] if origin is None else [field, origin]
    try:
        found = _json_lines(unit, fields) if unit.kind in ("lines", "gzip") else columns.columns(unit, fields)
        for read, values in found:
            yield read, values[-1], values[0]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise bad(unit.path, f"is truncated or not a gzip file: {error}", value=str(error)) from error
    except OSError as error:
        raise bad(unit.path, f"cannot be read: {error.strerror or error}", value=error.strerror) from error


def records(
    unit: Unit, fields: list[str], optional: list[str], origin: str | None
) -> Iterator[tuple[int, Callable[[], str], list[Any]]]:
    """(bytes of the unit read so far, place, fields, optional ones and origin) of every row. Raises DataError.

    fields: of any type, null among them. optional: those that may be missing too. origin: must be a string.
    """
    if unit.kind not in ("lines", "gzip"):
        yield from columns.records(unit, fields, optional, origin)
        return
    for number, read, line in _lines(unit):
        where = partial(_line, unit, number)
        with _at(where):
            record = _record_of(line)
            values = [_value_of(record, name, [name]) for name in fields]
            values += [record.get(name) for name in optional]
            if origin is not None:
                values.append(_string_of(record, origin, fields))
        yield read, where, values


def place(unit: Unit, number: int) -> str:
    """The name of a document of a unit, counted from 0 there, by its line or row in the file. Raises DataError."""
    if unit.kind not in ("lines", "gzip"):
        return columns.place(unit, number)
    line = next(line for line, _, _ in islice(_lines(unit), number, None))
    return _line(unit, line)


def _line(unit: Unit, line: int) -> str:
    """The name of a line of a unit, counted from 1 there."""
    return f"{unit.path}, line {line + (_newlines_before(unit.path, _start(unit)) if unit.kind == 'lines' else 0)}"


def _start(unit: Unit) -> int:
    """The place of the first line that starts in a unit of lines."""
    if not unit.first:
        return 0
    with open(unit.path, "rb") as raw:
        raw.seek(unit.first - 1)
        raw.readline()
        return raw.tell()


def _lines(unit: Unit) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, bytes of the unit read so far, line) of the lines that are not blank."""
    with open(unit.path, "rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if unit.kind == "gzip" else raw
        if unit.kind == "lines":
            raw.seek(_start(unit))  # a line belongs to the unit in which it starts
        number = 0
        while unit.kind == "gzip" or raw.tell() < unit.last:
            line = file.readline()
            if not line:
                return
            number += 1
            if not line.isspace():
                yield number, raw.tell() - unit.first, line


def _json_lines(unit: Unit, fields: list[str]) -> Iterator[tuple[int, Sequence[str]]]:
    for number, read, line in _lines(unit):
        with _at(partial(_line, unit, number)):
            record = _record_of(line)
            values = [_string_of(record, name, fields) for name in fields]
        yield read, values


@contextmanager
def _at(where: Callable[[], str]) -> Iterator[None]:
    """Turn a ValueError about a line into a DataError."""
    try:
        yield
    except ValueError as error:
        text, allowed = f"{where()}: {error}", f"correct the line, or {CHOOSE}"
        raise DataError(text, where=where(), value=str(error), allowed=allowed) from None


class _Repeated(dict[str, Any]):
    """A JSON object with a name that it has twice."""

    names: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found = _Repeated(found)
        found.names = frozenset(name for name in found if names.count(name) > 1)
    return found


def _whole(digits: str) -> int | float:
    """A whole number; it may have more digits than Python's int() accepts."""
    return int(digits) if len(digits) <= DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole)


def _record_of(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises ValueError with the reason."""
    if b"\0" in line:  # json would take it for UTF-16 or UTF-32, with a misleading message
        raise ValueError(f"a NUL at byte {line.index(0) + 1}: the file is incomplete or not UTF-8")
    try:
        record = _DECODER.decode(line.decode(json.detect_encoding(line), "surrogatepass"))
    except json.JSONDecodeError as error:
        if line.lstrip().startswith(b"["):
            raise ValueError(ARRAY) from None
        raise ValueError(f"not JSON ({error.msg.removesuffix(' at')} at character {error.pos + 1})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1}") from None
    except RecursionError:
        raise ValueError("not a record of text: it is nested too deeply") from None
    if isinstance(record, list):
        raise ValueError(ARRAY)
    if not isinstance(record, dict):
        raise ValueError('not a JSON object; each line has one document, as in {"text": "..."}')
    return record


def _value_of(record: dict[str, Any], field: str, fields: list[str]) -> Any:
    if isinstance(record, _Repeated) and field in record.names:
        raise ValueError(f"the field {field!r} appears twice")
    if field not in record:
        present = ", ".join(map(repr, record)) or "none"
        raise ValueError(f"no field {field!r}; the line has {present}; {choose(fields, field)}")
    return record[field]


def _string_of(record: dict[str, Any], field: str, fields: list[str]) -> str:
    found = _value_of(record, field, fields)
    if isinstance(found, list):
        remedy = "--image or --signal with the rules, or --media with the directory of a model, reads them"
        raise ValueError(f"the field {field!r} is a list, and no rule for images or signals is given; {remedy}")
    if not isinstance(found, str):
        raise ValueError(f"the field {field!r} is not a string; use --field with one that is")
    try:
        found.encode()
    except UnicodeEncodeError as error:  # JSON can contain strings that are not text
        half = f"\\u{ord(found[error.start]):04x}"
        raise ValueError(f"the field {field!r} has {half}, half of a surrogate pair") from None
    return found


def _newlines_before(path: str, end: int) -> int:
    with open(path, "rb") as file:
        count = 0
        while end > 0:
            block = file.read(min(end, 1 << 20))
            count += block.count(b"\n")
            end -= len(block)
    return count
