"""The tables of the stage `dedup`: hashes of each crop, and what was decided about it.

A file of each for every part of the stage before, with its number, and a row for every crop, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.crops import Box
from trainer.corpora.captions.dedup.looks import Looks
from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file

LOOKS, DECISIONS = "looks-{:05}.parquet", "decisions-{:05}.parquet"
COPY, BLANK, UNREADABLE = "copy", "blank", "unreadable image"
REASONS = ("", BLANK, UNREADABLE)  # found by looking at one crop
COLUMNS = {
    "id": "S16", "alone": "?", "near": "?", "dropped": "u1", "pixels": "i8", "exact": "S16", "phash": "u8",
    "turns": "u8",
}  # fmt: skip
Columns = dict[str, Any]  # a name -> values


@dataclass(frozen=True)
class Decision:
    """A crop with its place, kept or dropped. of: the id of the crop that is kept for it: its own where it is kept, ""
    where the reason to drop it is not a copy. dropped: the reason, "" for none. pdf, page, box: as in `Crop`."""

    id: str
    of: str
    dropped: str
    pdf: str
    page: int
    box: Box


@dataclass(frozen=True)
class Looked:
    """Hashes of a crop. alone: it is passed on without a search for copies, as it has no picture. near: near copies are
    searched, not only exact ones. dropped: the reason to drop it, "" for none. pixels: width times height."""

    id: str
    alone: bool
    near: bool
    dropped: str
    pixels: int
    looks: Looks

    def row(self) -> Columns:
        looks = self.looks
        return {
            "id": bytes.fromhex(self.id),
            "alone": self.alone,
            "near": self.near,
            "dropped": self.dropped,
            "pixels": self.pixels,
            "exact": bytes.fromhex(looks.exact[:32]),
            "phash": looks.phash,
            "turns": looks.turns,
        }


def write_looks(path: Path, rows: Sequence[Looked]) -> None:
    """Raises OSError."""
    import pyarrow as pa

    key = pa.binary(16)
    schema = pa.schema({
        "id": key, "alone": pa.bool_(), "near": pa.bool_(), "dropped": pa.string(), "pixels": pa.int64(), "exact": key,
        "phash": pa.uint64(), "turns": pa.uint64(),
    })  # fmt: skip
    _write(path, [row.row() for row in rows], schema)


def read_looks(path: Path) -> dict[str, NDArray[Any]]:
    """The columns of a part, in the types of COLUMNS; `dropped` is a place in REASONS. Raises DataError."""
    found = {
        name: column.to_pylist() for name, column in zip(COLUMNS, _read(path).select([*COLUMNS]).columns, strict=True)
    }
    found["dropped"] = [REASONS.index(reason) for reason in found["dropped"]]
    return {name: np.array(values, COLUMNS[name]) for name, values in found.items()}


def hexadecimal(ids: NDArray[Any], row: int) -> str:
    """The id of a row; an item of numpy's would lack zeros at its end."""
    return ids[row : row + 1].tobytes().hex()


def write_decisions(path: Path, rows: Sequence[Decision]) -> None:
    """Raises OSError."""
    import pyarrow as pa

    schema = pa.schema({
        "id": pa.string(), "of": pa.string(), "dropped": pa.string(), "pdf": pa.string(), "page": pa.int32(),
        "box": pa.list_(pa.float64(), 4),
    })  # fmt: skip
    _write(path, [vars(row) for row in rows], schema)


def read_decisions(directory: Path) -> Iterator[Decision]:
    """The decisions of the finished stage in a directory, in the order of the crops. The places of a figure are those
    of all rows with its id in `of`. Raises DataError."""
    for path in sorted(directory.glob(DECISIONS.replace("{:05}", "*"))):
        for row in _read(path).to_pylist():
            x0, y0, x1, y1 = row.pop("box")
            yield Decision(**row, box=(x0, y0, x1, y1))


def _write(path: Path, rows: list[Columns], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="ZSTD")


def _read(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        remedy = f"remove {path.parent} to start the stage over"
        reason = str(error).splitlines()[0]
        text = f"{path} is missing or corrupt ({reason}); {remedy}"
        raise DataError(text, where=str(path), allowed=remedy) from error
