"""The result of reading a data set: its recordings with their labels, and what is left out."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trainer.data.errors import DataError
from trainer.data.hashing import text_key

HELDOUT_SHARE = 0.1  # of the subjects of a data set that publishes no test set


class Label(NamedTuple):
    """A label in words. name: as an answer or an option. phrase: after "shows", "from" or "is", as its source needs."""

    name: str
    phrase: str


@dataclass(frozen=True)
class Item:
    """A recording, or a span of one. where: names it in errors. subject: a person, an animal, or what the data set has
    in place of one; all its recordings share their split. labels: keys of the survey's. setting: how it was recorded,
    as words after a comma. span: seconds from the start and to the end; None for all of it."""

    path: Path
    where: str
    subject: str
    labels: tuple[str, ...]
    setting: str = ""
    span: tuple[float, float] | None = None


@dataclass
class Survey:
    """A data set on disk. layout: its name. labels: in the order in which several are listed. held_out: subjects.
    split: what a subject is and which are held out, as sentences of a card. channels: to read, all by default.
    left_out: recordings, by the reason."""

    layout: str
    labels: Mapping[str, Label]
    items: list[Item]
    held_out: frozenset[str]
    split: str
    channels: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)


def rows_of(path: Path, delimiter: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(its place, the row) for each row of a table with a header. Raises DataError without the needed columns, or for a
    row with more or fewer cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            columns = next(rows, [])
            missing = [name for name in needed if name not in columns]
            if missing:
                text = f"{path}: no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}"
                raise DataError(text, where=str(path), value=tuple(columns), allowed=tuple(needed))
            for row in filter(None, rows):
                where = f"{path}, line {rows.line_num}"
                if len(row) != len(columns):
                    text = f"{where}: {len(row)} cells, but {len(columns)} columns"
                    raise DataError(text, where=where, value=len(row), allowed=len(columns))
                yield where, dict(zip(columns, row, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        text = f"{path} cannot be read: {reason}"
        raise DataError(text, where=str(path), value=str(reason), allowed="a table in UTF-8") from error


def number_in(row: Mapping[str, str], column: str, where: str) -> float:
    """A finite number of a row. Raises DataError."""
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        text = f"{where}: {column} {row[column]!r} is not a number"
        raise DataError(text, where=where, value=row[column], allowed="a number")
    return number


def whole_in(row: Mapping[str, str], column: str, where: str) -> int:
    """A whole number of a row, which tables also write as 15001.0. Raises DataError."""
    number = number_in(row, column, where)
    if not number.is_integer():
        text = f"{where}: {column} {row[column]!r} is not a whole number"
        raise DataError(text, where=where, value=row[column], allowed="a whole number")
    return int(number)


def unknown_label(where: str, found: str, known: Sequence[str]) -> DataError:
    """The error about a label that the data set is not known to have."""
    text = f"{where}: the label {found!r} is unknown; known are {', '.join(known)}"
    return DataError(text, where=where, value=found, allowed=tuple(known))


def hold_out(name: str, items: Sequence[Item]) -> frozenset[str]:
    """A share of the subjects, by a hash of their names: `HELDOUT_SHARE` of those with the same labels, and one at
    least of three or more. Of all subjects, one at least is held out if there are several. No seed changes them."""
    labels: dict[str, set[str]] = {}
    for item in items:
        labels.setdefault(item.subject, set()).update(item.labels)
    alike: dict[tuple[str, ...], list[str]] = {}
    for subject in sorted(labels, key=lambda subject: (text_key("heldout", name, subject), subject)):
        alike.setdefault(tuple(sorted(labels[subject])), []).append(subject)
    chosen = {
        subject
        for subjects in alike.values()
        for subject in subjects[: max(round(HELDOUT_SHARE * len(subjects)), len(subjects) > 2)]
    }
    if not chosen and len(labels) > 1:
        chosen = {min(labels, key=lambda subject: (text_key("heldout", name, subject), subject))}
    return frozenset(chosen)
