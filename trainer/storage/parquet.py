"""Rows of Parquet files that other programs wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their numbers, from 1; 256 of them are in memory at a time.

    What is null in a row is left out of it and of its structs: a struct of Parquet has every key that any row has.
    Maps become objects. Raises ValueError for a file that is not Parquet, a text that is not UTF-8 and a map with a key
    twice; OSError for a file that cannot be read.
    """
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield number, _without_nulls(row)
    except (ValueError, KeyError) as error:  # ArrowInvalid and UnicodeDecodeError are ValueErrors
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as Parquet after row {number}: {reason}") from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
