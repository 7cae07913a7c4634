"""Rows of Parquet files that other programs wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their numbers, from 1; 256 of them are in memory at a time.

    What is null in a row is left out of it and of its structs: a struct of Parquet has every key that any row has.
    Maps become objects, and a 0.1 in 16 or 32 bits is 0.1. Raises ValueError for a file that is not Parquet, a text
    that is not UTF-8, a map with a key twice and a column that is there twice; OSError for a file that cannot be read.
    """
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the column {twice} is there twice")
        for batch in file.iter_batches(batch_size=256):
            columns = [_shortest(column.to_pylist(maps_as_pydicts="strict"), column.type) for column in batch.columns]
            for row in zip(*columns, strict=True):
                number += 1
                yield number, _without_nulls(dict(zip(names, row, strict=True)))
    except (ValueError, KeyError) as error:  # ArrowInvalid and UnicodeDecodeError are ValueErrors
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as Parquet after row {number}: {reason}") from error


def _shortest(values: list[Any], kind: Any) -> list[Any]:
    """Values of a type of Arrow, those in 16 and 32 bits as the shortest number that stands for them: Arrow gives
    0.10000000149011612 for 0.1 in 32 bits."""
    import numpy as np
    from pyarrow import types

    if types.is_float16(kind) or types.is_float32(kind):
        narrow = np.float16 if types.is_float16(kind) else np.float32
        return [None if value is None else float(str(narrow(value))) for value in values]
    if types.is_struct(kind):
        found = [None if value is None else dict(value) for value in values]
        there = [value for value in found if value is not None]
        for field in kind:
            items = _shortest([value[field.name] for value in there], field.type)
            for value, item in zip(there, items, strict=True):
                value[field.name] = item
        return found
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [None if value is None else _shortest(value, kind.value_type) for value in values]
    return values


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
