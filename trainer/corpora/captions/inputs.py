"""The documents that the pipeline reads: PDFs, directories of them, and lists in JSON lines with licence and source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError
from trainer.storage.json_text import read_json

LIST = ".jsonl"
FIELDS = {"path": "path", "licence": "licence", "license": "licence", "source": "source"}  # of a list


@dataclass(frozen=True)
class Input:
    """One document. path: as the command names it. licence, source: from a list of inputs; "" without."""

    path: str
    licence: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """The path as text that can be written: bytes of it that are not UTF-8 as in "a\\xff.pdf"."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")


def find_inputs(names: Sequence[str | Path]) -> list[Input]:
    """The documents in the order of `names`; those of a directory in the order of their paths.

    A PDF is taken by its name, and read only later. A line of a .jsonl file is {"path": ..., "licence": ...,
    "source": ...}; paths start from the list's directory. A path that comes again is left out.
    Raises DataError for a line that is not one, and where there is no document at all.
    """
    found: dict[str, Input] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            some: Iterator[Input] = (Input(str(one)) for one in _pdfs(path))
        elif path.suffix.lower() == LIST:
            some = _listed(path)
        else:
            some = iter([Input(str(path))])
        for one in some:
            found.setdefault(one.path, one)
    if not found:
        named = ", ".join(map(str, names))
        remedy = "give PDFs, directories of PDFs, or lists in JSON lines"
        raise DataError(f"{named}: no PDF found; {remedy}", where=named, allowed=remedy)
    return list(found.values())


def identity(inputs: Sequence[Input]) -> str:
    """A hash of names, fields, sizes and times of the documents, by which a later start recognizes them."""
    digest = hashlib.sha256()
    for one in inputs:
        facts: dict[str, Any] = asdict(one)
        try:
            stat = os.stat(one.path)
            facts |= {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        except OSError:
            facts["bytes"] = None
        digest.update(json.dumps(facts, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _pdfs(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.suffix.lower() == ".pdf" and path.is_file())


def _listed(path: Path) -> Iterator[Input]:
    remedy = 'lines such as {"path": "a.pdf", "licence": "CC-BY-4.0", "source": "..."}'
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = read_json(line, unique=True)
            except ValueError as error:
                raise DataError(f"{where}: {error}; give {remedy}", where=where, allowed=remedy) from None
            if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
                raise DataError(f"{where} has no path; give {remedy}", where=where, allowed=remedy)
            if "\0" in row["path"]:
                text = f"{where}: no file has NUL in its path; give {remedy}"
                raise DataError(text, where=where, value=row["path"], allowed=remedy)
            fields = {FIELDS[key]: value for key, value in row.items() if key in FIELDS}
            wrong = [key for key, value in fields.items() if not isinstance(value, str)]
            if wrong:
                text = f"{where}: {wrong[0]} is not a text; give {remedy}"
                raise DataError(text, where=where, value=fields[wrong[0]], allowed=remedy)
            yield Input(**{**fields, "path": str(path.parent / fields["path"])})
