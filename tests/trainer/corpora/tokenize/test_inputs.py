"""Every kind of input gives the same documents, and every bad one a line that names it."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.corpora.tokenize.tokenized import texts, write_jsonl
from trainer.corpora.tokenize import inputs
from trainer.corpora.tokenize.built import arrow_files, built_dataset
from trainer.corpora.tokenize.datasets_private import selects_rows
from trainer.corpora.tokenize.inputs import find_files, units_of
from trainer.data.errors import DataError

TEXTS = texts(60)
TABLE = {"text": TEXTS, "number": [*range(60)]}


def read(paths: list[Path], field: str = "text") -> list[str]:
    return [text for unit in units_of(paths) for _, _, text in inputs.documents(unit, field)]


def jsonl(directory: Path) -> list[Path]:
    return [write_jsonl(directory / "a.jsonl", TEXTS)]


def jsonl_with_blank_lines_and_no_end(directory: Path) -> list[Path]:
    path = directory / "a.json"
    path.write_text("\n  \n".join(json.dumps({"text": text}) for text in TEXTS))
    return [path]


def gzipped(directory: Path) -> list[Path]:
    path = directory / "a.jsonl.gz"
    path.write_bytes(gzip.compress(write_jsonl(directory / "a", TEXTS).read_bytes()))
    return [path]


def parquet(directory: Path) -> list[Path]:
    pq.write_table(pa.table(TABLE), directory / "a.parquet", row_group_size=7)
    return [directory / "a.parquet"]


def arrow_file(directory: Path) -> list[Path]:
    table = pa.table(TABLE)
    with pa.ipc.new_file(str(directory / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=11)
    return [directory / "a.arrow"]


def saved_dataset(directory: Path) -> list[Path]:
    datasets.Dataset.from_dict(TABLE).save_to_disk(str(directory / "saved"))
    return find_files([directory / "saved"])


def saved_dictionary(directory: Path) -> list[Path]:
    some = datasets.Dataset.from_dict(TABLE)
    datasets.DatasetDict({"train": some, "test": some.select([0])}).save_to_disk(str(directory / "saved"))
    with pytest.raises(DataError) as caught:
        find_files([directory / "saved"], "validation")
    assert (caught.value.where, caught.value.value) == ("--split", "validation")
    assert set(caught.value.allowed) == {"train", "test"}
    assert read(find_files([directory / "saved"], "test")) == TEXTS[:1]
    return find_files([directory / "saved"])


def built(directory: Path) -> list[Path]:
    path = directory / "a.csv"
    datasets.Dataset.from_dict(TABLE).to_csv(str(path))
    return built_dataset("csv", None, [path], "train")


def tree(directory: Path) -> list[Path]:
    (directory / "tree" / "deep").mkdir(parents=True)
    write_jsonl(directory / "tree" / "deep" / "a.jsonl", TEXTS[:20])
    write_jsonl(directory / "tree" / "z.jsonl", TEXTS[20:])
    (directory / "tree" / "README.md").write_text("not read")
    return find_files([directory / "tree"])


@pytest.mark.parametrize("unit", [50, 1000, 1 << 26])
@pytest.mark.parametrize(
    "write",
    [
        jsonl,
        jsonl_with_blank_lines_and_no_end,
        gzipped,
        parquet,
        arrow_file,
        saved_dataset,
        saved_dictionary,
        built,
        tree,
    ],
)
def test_every_kind_gives_the_same_documents(tmp_path, monkeypatch, write, unit):
    monkeypatch.setattr(inputs, "UNIT", unit)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert read(write(tmp_path)) == TEXTS


def test_units_split_a_file_anywhere(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:6])
    for size in range(1, path.stat().st_size + 2):
        monkeypatch.setattr(inputs, "UNIT", size)
        assert read([path]) == TEXTS[:6]


def write_text(name: str, content: str | bytes) -> Callable[[Path], list[Path]]:
    def write(directory: Path) -> list[Path]:
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return [directory / name]

    return write


def wrong_column(directory: Path) -> list[Path]:
    pq.write_table(pa.table({"text": [1, 2]}), directory / "a.parquet")
    return [directory / "a.parquet"]


def null(directory: Path) -> list[Path]:
    pq.write_table(pa.table({"text": ["a", None]}), directory / "a.parquet")
    return [directory / "a.parquet"]


def no_column(directory: Path) -> list[Path]:
    pq.write_table(pa.table({"body": ["a"], "url": ["b"]}), directory / "a.parquet")
    return [directory / "a.parquet"]


def cut(write: Callable[[Path], list[Path]], keep: float) -> Callable[[Path], list[Path]]:
    def cutting(directory: Path) -> list[Path]:
        (path,) = write(directory)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        return [path]

    return cutting


GOOD = '{"text": "iron"}\n'


@pytest.mark.parametrize(
    ("write", "where", "value"),
    [
        (write_text("a.jsonl", ""), r"a\.jsonl$", "^0$"),
        (write_text("a.jsonl", GOOD * 2 + "\n" + '{"text": "iro'), r"a\.jsonl, line 4$", r"\bJSON\b"),
        (write_text("a.jsonl", GOOD + b'{"text": "\xff"}'.decode("latin-1")), None, None),
        (write_text("a.jsonl", GOOD.encode() + b'{"text": "\xff"}'), r"a\.jsonl, line 2$", r"\bUTF-8\b.* 11$"),
        (write_text("a.jsonl", GOOD.encode() + bytes(20)), r"a\.jsonl, line 2$", r"\bNUL\b.* 1\b"),
        (write_text("a.jsonl", GOOD + '{"text": "a \\ud83d b"}'), "line 2$", r"\\ud83d"),
        (write_text("a.jsonl", GOOD.encode() + b'{"text": "\xed\xa0\x80"}'), "line 2$", r"\\ud800"),
        (write_text("a.jsonl", GOOD + '{"x": ' + "[" * 99_999), "line 2$", "nested"),
        (write_text("a.jsonl", GOOD + "[1]\n"), "line 2$", r"\bJSON\b"),
        (
            write_text("a.jsonl", '{"body": "a", "id": 1}'),
            "line 1$",
            "'text'.*'body', 'id'.*--field",
        ),
        (write_text("a.jsonl", GOOD * 3 + '{"text": null}'), "line 4$", "'text'"),
        (write_text("a.jsonl.gz", GOOD), r"a\.jsonl\.gz$", "gzip"),
        (cut(gzipped, 0.8), r"a\.jsonl\.gz$", "end-of-stream"),
        (write_text("a.parquet", GOOD), r"a\.parquet$", "Parquet"),
        (cut(parquet, 0.8), r"a\.parquet$", "Parquet"),
        (no_column, r"a\.parquet$", "^text$"),
        (wrong_column, r"a\.parquet$", "^text$"),
        (null, r"a\.parquet, row 2$", "^text$"),
        (write_text("a.arrow", GOOD), r"a\.arrow$", "Arrow"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, write, where, value):
    monkeypatch.setattr(inputs, "UNIT", 20)
    if where is None:
        assert len(read(write(tmp_path))) == 2
        return
    with pytest.raises(DataError) as caught:
        read(write(tmp_path))
    assert re.search(where, caught.value.where)
    assert re.search(value, str(caught.value.value))
    assert caught.value.allowed
    (line,) = caught.value.lines
    assert str(tmp_path) in line


def test_a_missing_column_is_reported_with_those_there_are(tmp_path):
    with pytest.raises(DataError) as caught:
        read(no_column(tmp_path))
    assert (caught.value.value, caught.value.allowed) == ("text", ("body", "url"))
    assert "--field" in caught.value.lines[0]


def test_names_that_cannot_be_read_are_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    for names, value, allowed in (
        (["nowhere"], None, "an existing file or directory"),
        (["empty"], None, inputs.SUFFIXES),
        (["a.txt"], ".txt", inputs.SUFFIXES),
        (["a.jsonl", "a.jsonl"], None, "give each file once"),
    ):
        with pytest.raises(DataError) as caught:
            find_files([tmp_path / name for name in names])
        assert caught.value.where == str(tmp_path / names[0])
        assert (caught.value.value, caught.value.allowed) == (value, allowed)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "state.json").write_text("{")
    with pytest.raises(DataError) as caught:
        find_files([tmp_path / "half"])
    assert caught.value.where == str(tmp_path / "half")
    assert "save_to_disk" in caught.value.lines[0]
    with pytest.raises(DataError) as caught:
        built_dataset("csv", None, [tmp_path / "nowhere.csv"], "train")
    assert (caught.value.where, caught.value.value) == ("--builder", "csv")
    chosen = datasets.Dataset.from_dict(TABLE).select([3, 1])
    assert selects_rows(chosen)
    assert not selects_rows(datasets.Dataset.from_dict(TABLE))
    with pytest.raises(DataError) as caught:
        arrow_files(chosen, "saved")
    assert caught.value.where == "saved"
    assert "flatten_indices()" in caught.value.allowed
    assert read([path], "text") == TEXTS
