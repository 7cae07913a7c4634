"""The tables of the stages: Parquet files `part-00000.parquet` and so on in a directory for each stage.

The part number and the place in the part give the order of the crops, which depends on the inputs alone. Images are a
column, so that 10^8 of them are not 10^8 files, and a stage that needs none does not read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.corpora.captions.crops import Crop
from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file

IMAGE = "image"
ROWS_AT_ONCE = 64  # crops in memory while a part is read or written, about 4 MB at 60 kB a crop
PART = "part-{:05}.parquet"
NUMBERS = {"page": "int32", "width": "int32", "height": "int32", "dpi": "float64"}
LISTS = {"page_size": 2, "box": 4}


def part_path(directory: Path, number: int) -> Path:
    return directory / PART.format(number)


def parts_of(directory: Path) -> list[Path]:
    """The parts of a stage in their order. Raises DataError where one is missing."""
    found = sorted(directory.glob("part-*.parquet"))
    wanted = [part_path(directory, number) for number in range(len(found))]
    if found != wanted:
        lacking = min({*wanted} - {*found})
        remedy = "run the stage again, in a new directory"
        raise DataError(f"{lacking} is missing; {remedy}", where=str(lacking), allowed=remedy)
    return found


def write_part(path: Path, crops: Iterable[Crop]) -> int:
    """Write one part, complete or not at all, and return the number of its crops. The same crops give the same bytes.

    Raises OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = _schema(), 0
    with atomic_file(path) as temporary, pq.ParquetWriter(
        temporary, schema, compression={name: "NONE" if name == IMAGE else "ZSTD" for name in schema.names},
        use_dictionary=["pdf", "document", "kind", "format", "found_by", "licence", "source"],
        write_statistics=["id", "pdf"],
    ) as writer:  # fmt: skip
        rows: list[dict[str, Any]] = []
        for crop in crops:
            rows.append(vars(crop))
            count += 1
            if len(rows) == ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return count


def read_part(path: Path, *, images: bool = True, only: Sequence[str] | None = None) -> Iterator[Crop]:
    """The crops of one part, `ROWS_AT_ONCE` of them in memory. images: False leaves `image` empty and reads less.

    only: ids of the crops that are wanted. Raises DataError for a file that is not such a part.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in _schema().names if images or name != IMAGE]
    wanted = None if only is None else {*only}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=names):
                for row in batch.to_pylist():
                    if wanted is None or row["id"] in wanted:
                        yield _crop(row)
    except (pa.ArrowException, KeyError, TypeError) as error:
        remedy = "remove it and run the stage again"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is corrupt ({reason}); {remedy}", where=str(path), allowed=remedy) from error


def read_crops(directory: Path, *, images: bool = True) -> Iterator[Crop]:
    """The crops of a stage's directory, in order. Raises DataError."""
    for path in parts_of(directory):
        yield from read_part(path, images=images)


def _crop(row: dict[str, Any]) -> Crop:
    width, height = row.pop("page_size")
    x0, y0, x1, y1 = row.pop("box")
    return Crop(**{IMAGE: b"", **row}, page_size=(width, height), box=(x0, y0, x1, y1))


def _schema() -> Any:
    """pyarrow's schema of a `Crop`."""
    import pyarrow as pa

    def kind(name: str) -> Any:
        if name in LISTS:
            return pa.list_(pa.float64(), LISTS[name])
        if name == IMAGE:
            return pa.binary()
        return getattr(pa, NUMBERS[name])() if name in NUMBERS else pa.string()

    return pa.schema([pa.field(name, kind(name), nullable=False) for name in Crop.__dataclass_fields__])
