"""Tables of the user: a CSV, TSV or JSONL file, and a YAML file that gives the meaning of its columns."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parallel.errors import one_of
from trainer.config.say import did_you_mean
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.data.errors import DataError

TOP = ("name", "key", "thing", "things", "authority", "properties")
TEXTS = ("label", "condition", "unit")
FLAGS = ("quoted", "identifies", "asked", "measured")
KEYS = (*TEXTS, "text", *FLAGS)
SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".jsonl", ".ndjson")
HAPPENED = {  # what happened in the year of one of these
    "construction": "constructed", "discovery": "discovered", "foundation": "founded", "introduction": "introduced",
    "invention": "invented", "isolation": "isolated", "launch": "launched", "publication": "published",
    "synthesis": "synthesized",
}  # fmt: skip
EXAMPLE = "name: compound, properties: {mp: {label: melting point, unit: K}}"


def read_table(path: Path, columns: Path) -> Table:
    """The records of `path`, with the meaning that `columns` gives to its columns:

        name: compound          # the column with the name of a thing
        key: cas                # the column that all records of one thing share; the name if not given
        thing: compound         # the word for such a thing
        things: compounds       # and its plural
        authority: the 2024 survey         # optional: the source of the values
        properties:             # column -> its meaning
          mp: {label: melting point, unit: K}
          hv: {label: Vickers hardness, condition: at room temperature}
          smiles: {label: SMILES string, text: true, quoted: true, identifies: true}

    A property is a number unless `text: true`; one with the label `year of introduction` is a date: a thing "was
    introduced in 1962". A text with the label `class` is a noun: a thing "is classed as a permanent magnet". An empty
    cell is a missing value. Raises DataError with the line and the column.
    """
    mapping = _mapping(columns)
    properties = {column: _property(columns, column, given) for column, given in mapping["properties"].items()}
    name, key, thing = mapping["name"], mapping.get("key", mapping["name"]), mapping.get("thing", "entry")
    records, seen_columns = [], set[str]()
    for line, row in _rows(path):
        seen_columns |= row.keys()
        for column in (name, key):
            if not row.get(column):
                if column not in row and path.suffix in SEPARATORS:
                    raise _no_column(path, columns, column, seen_columns)
                where = f"{path}, line {line}, column '{column}'"
                raise DataError(f"{where} is empty", where=where, allowed="fill the cell or remove the line")
        values = {column: row[column] for column in properties if row.get(column)}
        for column, value in values.items():
            if properties[column].number and number(value) is None:
                where = f"{path}, line {line}, column '{column}'"
                remedy = f"correct it, leave the cell empty, or set text: true for the column in {columns}"
                raise DataError(
                    f"{where}: '{value}' is not a number; {remedy}", where=where, value=value, allowed=remedy
                )
        if values:
            records.append(Record(row[key], " ".join(row[name].split()), values))
    for column in (name, key, *properties):
        if column not in seen_columns:
            raise _no_column(path, columns, column, seen_columns)
    if not records:
        raise DataError(
            f"{path} has no record with a value in {one_of(properties)}",
            where=str(path),
            allowed=f"fill {one_of(properties)} for at least one record",
        )
    things = mapping.get("things", "entries" if thing == "entry" else thing + "s")
    return Table(path.stem, thing, things, properties, records, mapping.get("authority", ""))


def _no_column(path: Path, columns: Path, column: str, seen: set[str]) -> DataError:
    return DataError(
        f"{path} has no column '{column}', which {columns} names{did_you_mean(column, seen)}",
        where=f"{columns}: {column}",
        value=column,
        allowed=tuple(sorted(seen)),
    )


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", where=str(path), allowed="give a readable file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{path} is not YAML: {problem}", where=str(path), value=problem, allowed=EXAMPLE) from error
    if not isinstance(mapping, dict) or not isinstance(mapping.get("properties"), dict) or not mapping["properties"]:
        raise DataError(
            f"{path} must define name and properties, for example: {EXAMPLE}", where=str(path), allowed=EXAMPLE
        )
    for key in mapping:
        if key not in TOP:
            raise DataError(
                f"{path}: '{key}' is not a key of a description of columns; use {one_of(TOP)}"
                f"{did_you_mean(str(key), TOP)}",
                where=f"{path}: {key}",
                value=key,
                allowed=TOP,
            )
    for key in TOP[:-1]:
        given = mapping.get(key)
        if (key == "name" or key in mapping) and not (isinstance(given, str) and given.strip()):
            raise DataError(
                f"{path}: {key}={given!r} is not a text, as in: {EXAMPLE}",
                where=f"{path}: {key}",
                value=given,
                allowed="a text",
            )
    return mapping


def _property(path: Path, column: str, given: object) -> Property:
    where = f"{path}: properties.{column}"
    if not isinstance(given, dict) or not isinstance(given.get("label"), str):
        raise DataError(f"{where} lacks a label, as in: {EXAMPLE}", where=where, value=given, allowed=EXAMPLE)
    for key, value in given.items():
        if key not in KEYS:
            raise DataError(
                f"{where}.{key} is unknown; use {one_of(KEYS)}{did_you_mean(str(key), KEYS)}",
                where=f"{where}.{key}",
                value=value,
                allowed=KEYS,
            )
        if not isinstance(value, str if key in TEXTS else bool):
            kind = "a text" if key in TEXTS else "true or false"
            raise DataError(f"{where}.{key}={value!r} is not {kind}", where=f"{where}.{key}", value=value, allowed=kind)
    label, condition, unit = (" ".join(given.get(key, "").split()) for key in TEXTS)
    flags = {key: given[key] for key in FLAGS if key in given}
    text = given.get("text", False)
    happened = HAPPENED.get(label.removeprefix("year of ")) if label.startswith("year of ") and not text else None
    if happened and not condition and not unit:
        flags.setdefault("measured", False)
        return Property(
            label,
            happened=happened,
            predicates=(f"was {happened} in {{value}}",),
            questions=(f"In which year was {{called}} {happened}?", f"When was {{called}} {happened}?"),
            extremes=("earliest", "most recent"),
            **flags,
        )
    if label == "class" and text and not condition and not unit:
        questions = ("What class does {called} belong to?", "To which class does {called} belong?")
        return Property(label, number=False, classed=True, questions=questions, **flags)
    return Property(label, condition, unit, number=not text, had=not text or flags.get("identifies", False), **flags)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line, column -> cell) of every record."""
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix in SEPARATORS:
                reader = csv.DictReader(file, delimiter=SEPARATORS[path.suffix], strict=True)
                for row in reader:
                    line = reader.line_num
                    if None in row:
                        where = f"{path}, line {line}"
                        raise DataError(
                            f"{where}: more cells than the header has",
                            where=where,
                            allowed="quote cells with separators",
                        )
                    yield line, {key.strip(): (cell or "").strip() for key, cell in row.items()}
            elif path.suffix in SUFFIXES:
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield line, _cells(text)
            else:
                raise DataError(
                    f"{path}: use a file whose name ends in {one_of(SUFFIXES[:3])}",
                    where=str(path),
                    value=path.suffix,
                    allowed=SUFFIXES,
                )
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", where=str(path), allowed="give a readable file") from error
    except (ValueError, csv.Error) as error:
        where = f"{path}, line {max(line, 1)}"
        raise DataError(f"{where}: {error}", where=where, value=str(error), allowed="correct the line") from error


def _cells(line: str) -> dict[str, str]:
    """The texts and numbers of a JSON object, with numbers as they are written."""
    found = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
    if not isinstance(found, dict):
        raise ValueError("a line is not a JSON object")
    return {key: value.strip() for key, value in found.items() if isinstance(value, str)}
