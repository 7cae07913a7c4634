"""Records of the user's own: a CSV, TSV or JSONL file, and a YAML file that says what its columns mean."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from trainer.config.say import did_you_mean, one_of
from trainer.corpora.science.records import Property, Record, Table, number
from trainer.data.errors import DataError

TOP = ("name", "key", "thing", "things", "authority", "properties")
KEYS = (*(field.name for field in fields(Property)), "text")
SUFFIXES = {".csv": ",", ".tsv": "\t"}
EXAMPLE = "as in: name: compound, properties: {mp: {said: melting point, unit: K}}"


def read_table(path: Path, columns: Path) -> Table:
    """The records of `path`, whose columns `columns` explains:

        name: compound          # the column with the name of a thing
        key: cas                # and the one that all records of the same thing share; the name if not given
        thing: compound         # what such a thing is called, and several of them
        things: compounds
        authority: the survey of 2024      # optional: whose values these are
        properties:             # column -> what it holds
          mp: {said: melting point, unit: K}
          smiles: {said: SMILES string, text: true, quoted: true, identifies: true}

    A property is a number unless `text: true`. An empty cell is a missing value. Raises DataError with the line and
    the column.
    """
    mapping = _mapping(columns)
    properties = {column: _property(columns, column, said) for column, said in mapping["properties"].items()}
    name, key, thing = mapping["name"], mapping.get("key", mapping["name"]), mapping.get("thing", "entry")
    records, seen_columns = [], set[str]()
    for place, row in _rows(path):
        seen_columns |= row.keys()
        if not row.get(name) or not row.get(key):
            raise DataError(f"{path}, {place}: the column '{name if not row.get(name) else key}' is empty")
        values = {column: row[column] for column in properties if row.get(column)}
        for column, value in values.items():
            if properties[column].number and number(value) is None:
                raise DataError(
                    f"{path}, {place}, column '{column}': '{value}' is no number; correct it, leave the cell empty or "
                    f"say text: true for the column in {columns}"
                )
        if values:
            records.append(Record(row[key], " ".join(row[name].split()), values))
    for column in (name, key, *properties):
        if column not in seen_columns:
            near = did_you_mean(column, seen_columns)
            raise DataError(f"{path} has no column '{column}'; {columns} names it{near}")
    if not records:
        raise DataError(f"{path} has no record with a value in {one_of(properties)}")
    things = mapping.get("things", "entries" if thing == "entry" else thing + "s")
    return Table(path.stem, thing, things, properties, records, mapping.get("authority", ""))


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict) or not isinstance(mapping.get("properties"), dict) or not mapping["properties"]:
        raise DataError(f"{path} lacks a name or properties, {EXAMPLE}")
    for key in mapping:
        if key not in TOP:
            near = did_you_mean(str(key), TOP)
            raise DataError(f"{path}: '{key}' is no key of a mapping of columns; use {one_of(TOP)}{near}")
    for key in TOP[:-1]:
        given = mapping.get(key)
        if (key == "name" or key in mapping) and not (isinstance(given, str) and given.strip()):
            raise DataError(f"{path}: {key}={given!r} is no text, {EXAMPLE}")
    return mapping


def _property(path: Path, column: str, said: object) -> Property:
    if not isinstance(said, dict) or not isinstance(said.get("said"), str):
        raise DataError(f"{path}: properties.{column} does not say what the column holds, {EXAMPLE}")
    for key, value in said.items():
        if key not in KEYS or key == "number":
            near = did_you_mean(str(key), KEYS)
            allowed = one_of([one for one in KEYS if one != "number"])
            raise DataError(f"{path}: properties.{column}.{key} is unknown; use {allowed}{near}")
        if not isinstance(value, str if key in ("said", "of", "unit") else bool):
            kind = "a text" if key in ("said", "of", "unit") else "true or false"
            raise DataError(f"{path}: properties.{column}.{key}={value!r} is not {kind}")
    if "of" in said and "{name}" not in said["of"]:
        raise DataError(f"{path}: properties.{column}.of={said['of']!r} lacks {{name}}")
    rest = {key: value for key, value in said.items() if key != "text"}
    return Property(**rest, number=not said.get("text", False))


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(where it stands, column -> cell) of every record."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix in SUFFIXES:
                reader = csv.DictReader(file, delimiter=SUFFIXES[path.suffix], strict=True)
                for row in reader:
                    if None in row:
                        raise DataError(f"{path}, line {reader.line_num}: more cells than the header has")
                    yield f"line {reader.line_num}", {key.strip(): (cell or "").strip() for key, cell in row.items()}
            elif path.suffix in (".jsonl", ".ndjson"):
                for line_number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"line {line_number}", _cells(line)
            else:
                raise DataError(f"{path}: use a file whose name ends in .csv, .tsv or .jsonl")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from error


def _cells(line: str) -> dict[str, str]:
    """A JSON object's texts and numbers, the numbers as they are written."""
    found = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
    if not isinstance(found, dict):
        raise ValueError("a line is no JSON object")
    return {key: value.strip() for key, value in found.items() if isinstance(value, str)}
