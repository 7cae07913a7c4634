"""Look-ups in a table of science records: the files that `octavo science --records FILE --columns FILE` takes.

A value is given as the characters of its source, with its unit.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.rl.environments.base import EnvironmentFailed
from trainer.rl.environments.tools import Tool, ToolError

NEAR = 3  # names that are suggested
SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Records:
    """Values by name and property, in their order in the file. labels: of the properties, by column; units: likewise.

    Raises EnvironmentFailed for files that cannot be read."""

    def __init__(self, path: Path, columns: Path) -> None:
        meaning = _columns(columns)
        name, properties = str(meaning["name"]), meaning["properties"]
        self.labels = {column: _label(column, given) for column, given in properties.items()}
        self.units = {column: str(given.get("unit") or "") for column, given in properties.items()}
        self._rows: dict[str, list[tuple[str, Mapping[str, str]]]] = defaultdict(list)
        for row in _rows(path):
            called = " ".join(row.get(name, "").split())
            if called:
                self._rows[called.casefold()].append((called, row))
        if not self._rows:
            allowed = f"rows with a value in the column {name}"
            raise EnvironmentFailed(f"{path} has no record; give {allowed}", where=str(path), value=0, allowed=allowed)

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def find(self, name: str, wanted: str) -> str:
        """`melting point of NAME: 454.10 K`, a line for each record of that name. Raises ToolError."""
        rows = self._rows.get(" ".join(name.split()).casefold())
        if not rows:
            near = difflib.get_close_matches(name.casefold(), self._rows, NEAR)
            hint = f"; near it are {', '.join(self._rows[one][0][0] for one in near)}" if near else ""
            raise ToolError(f"there is no record of {name[:80]}{hint}")
        column = self._column(wanted)
        lines = []
        for called, row in rows:
            if value := row.get(column, ""):
                lines.append(f"{self.labels[column]} of {called}: {value} {self.units[column]}".rstrip())
        if not lines:
            raise ToolError(f"the record of {rows[0][0]} has no {self.labels[column]}")
        return "\n".join(lines)

    def _column(self, wanted: str) -> str:
        low = " ".join(wanted.split()).casefold()
        for column, label in self.labels.items():
            if low in (column.casefold(), label.casefold()):
                return column
        raise ToolError(f"there is no property {wanted[:80]}; use {', '.join(self.labels.values())}")


def table_tool(records: Records) -> Tool:
    return Tool(
        "look_up",
        f"Finds a property of a thing in a table of {len(records):,} records. Properties: "
        f"{', '.join(records.labels.values())}.",
        {
            "name": {"type": "string", "description": "of the thing"},
            "property": {"type": "string", "description": "one of the properties"},
        },
        lambda name, property: records.find(name, property),
    )


def _label(column: str, given: Mapping[str, Any]) -> str:
    return " ".join(filter(None, [str(given.get("label") or column), str(given.get("condition") or "")]))


def _columns(path: Path) -> Mapping[str, Any]:
    import yaml

    allowed = "name: COLUMN, properties: {COLUMN: {label: melting point, unit: K}}"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EnvironmentFailed(f"{path} cannot be read: {error}; give {allowed}", where=str(path),
                                allowed=allowed) from error  # fmt: skip
    properties = found.get("properties") if isinstance(found, dict) else None
    if (
        not isinstance(properties, dict)
        or "name" not in found
        or not all(isinstance(one, dict) for one in properties.values())
    ):
        raise EnvironmentFailed(f"{path}: give {allowed}", where=str(path), value=found, allowed=allowed)
    return found


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    allowed = "a .csv, .tsv or .jsonl file of records"
    if path.suffix not in (*SEPARATORS, ".jsonl"):
        raise EnvironmentFailed(f"{path} is not {allowed}", where=str(path), value=path.suffix, allowed=allowed)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix in SEPARATORS:
                for row in csv.DictReader(file, delimiter=SEPARATORS[path.suffix]):
                    yield {str(key): str(value or "").strip() for key, value in row.items()}
            else:
                # numbers keep their digits: 454.10 stays 454.10
                for line in filter(str.strip, file):
                    found = json.loads(line, parse_float=str, parse_int=str)
                    yield {key: "" if value is None else str(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise EnvironmentFailed(f"{path} cannot be read: {error}; give {allowed}", where=str(path), value=str(error),
                                allowed=allowed) from error  # fmt: skip
