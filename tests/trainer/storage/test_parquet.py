"""Rows of Parquet files."""

import pyarrow
import pyarrow.parquet
import pytest

from trainer.storage.parquet import parquet_rows


def write(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_rows_have_numbers_and_no_nulls(tmp_path):
    rows = [{"a": {"x": 1, "y": None}, "b": [{"z": None}, {"z": 2}]}, {"a": None, "b": []}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected = [(1, {"a": {"x": 1}, "b": [{}, {"z": 2}]}), (2, {"b": []})]
    assert [*parquet_rows(tmp_path / "rows.parquet")] == expected


def test_maps_are_objects_and_a_key_that_is_there_twice_is_an_error(tmp_path):
    kind = pyarrow.map_(pyarrow.string(), pyarrow.int64())
    good = write(tmp_path / "good.parquet", a=pyarrow.array([[("x", 1), ("y", 2)]], kind))
    assert [*parquet_rows(good)] == [(1, {"a": {"x": 1, "y": 2}})]
    twice = write(tmp_path / "twice.parquet", a=pyarrow.array([[("x", 1), ("x", 2)]], kind))
    with pytest.raises(ValueError, match=str(twice)):
        [*parquet_rows(twice)]


def test_text_that_is_not_utf_8_and_files_that_are_not_parquet_are_errors(tmp_path):
    words = pyarrow.array([b"a", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    path = write(tmp_path / "words.parquet", a=words)
    with pytest.raises(ValueError, match=str(path)):
        [*parquet_rows(path)]
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"no\.parquet"):
        [*parquet_rows(tmp_path / "no.parquet")]
    with pytest.raises(FileNotFoundError):
        [*parquet_rows(tmp_path / "missing.parquet")]
