"""The rows of the stages `captions` and `quality`: one for each crop, in the order of the crops' parts.

`part-00000.jsonl` has the rows of `part-00000.parquet`, those that were dropped too, with their reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.corpora.captions.tables import parts_of
from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file


@dataclass(frozen=True)
class Row:
    """A crop's caption, or why it has none.

    id, kind: of the crop. route, model: of the captioner; "" where none was asked. instruction: what it was asked,
    without the document's text. caption: of a dropped row, what was answered all the same. tokens_in, tokens_out: None
    where the server does not count them. score: of the discriminator; None without. dropped: the reason; "" for a row
    that is kept.
    """

    id: str
    kind: str
    route: str = ""
    model: str = ""
    instruction: str = ""
    caption: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    score: float | None = None
    dropped: str = ""


def rows_path(directory: Path, part: Path) -> Path:
    """The file with the rows of a part of crops."""
    return directory / part.with_suffix(".jsonl").name


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a file, complete or not at all. Raises OSError."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row), ensure_ascii=True) + "\n")


def read_rows(path: Path) -> Iterator[Row]:
    """Raises DataError for a file that is not such a part."""
    remedy = "remove it and run the stage again"
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield Row(**json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}; {remedy}", where=str(path), allowed=remedy) from error


def read_captions(crops: Path, directory: Path) -> Iterator[Row]:
    """The rows that a stage has kept, in order. crops: the directory of the crops' parts. Raises DataError."""
    for part in parts_of(crops):
        for row in read_rows(rows_path(directory, part)):
            if not row.dropped:
                yield row
