"""The contract of suites, and the readers of benchmark files."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.evaluation.files import bad_row, find_file, find_files, read_rows
from trainer.evaluation.perplexity import read_documents
from trainer.evaluation.registry import find
from trainer.evaluation.suite import Item, Scored, Suite, SuiteError, mean_of

ROWS = [{"id": "007", "answer": "1.50"}, {"id": "8", "answer": "ä"}]


def write(path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif path.suffix == ".json":
        path.write_text(json.dumps({"first": ROWS[:1], "second": ROWS[1:]}))
    else:
        comma = "\t" if path.suffix == ".tsv" else ","
        path.write_text(comma.join(ROWS[0]) + "\n" + "".join(comma.join(row.values()) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv", ".tsv"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert list(read_rows(write(tmp_path / f"rows{suffix}"), "id", "answer")) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SuiteError) as caught:
        list(read_rows(path))
    assert caught.value.where == str(path)


def test_missing_files_columns_and_formats(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        find_file(tmp_path, "a.jsonl", "b*.parquet")
    assert (caught.value.where, caught.value.allowed) == (str(tmp_path), ("a.jsonl", "b*.parquet"))
    path = write(tmp_path / "b1.parquet")
    assert find_file(tmp_path, "a.jsonl", "b*.parquet") == path
    assert find_files(tmp_path, "b?.parquet") == [path]
    with pytest.raises(SuiteError) as caught:
        list(read_rows(path, "id", "question"))
    assert (caught.value.where, caught.value.allowed) == (str(path), ("id", "question"))
    with pytest.raises(SuiteError) as caught:
        list(read_rows(tmp_path / "rows.txt"))
    assert caught.value.value == ".txt"
    with pytest.raises(SuiteError):
        list(read_rows(tmp_path / "no.jsonl"))
    assert bad_row(path, 3, "answer=Q is not an option", value="Q", allowed="A to D").value == "Q"


def test_documents_of_all_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    (tmp_path / "b.csv").write_text("text\nsecond\n")
    assert [(one.domain, one.text) for one in read_documents(tmp_path, None)] == [("a", "first"), ("b", "second")]
    (tmp_path / "a.tsv").write_text("text\nthird\n")
    with pytest.raises(SuiteError) as caught:
        read_documents(tmp_path, None)
    assert (caught.value.where, caught.value.value) == (str(tmp_path / "a.tsv"), "a.jsonl")


def test_means_by_category() -> None:
    scored = [Scored(Item(str(n), [], meta={"category": "ab"[n % 2]}), "", {"correct": n < 3}) for n in range(4)]
    summary = mean_of("correct")(scored)
    assert (summary.value, summary.categories) == (75.0, {"a": 100.0, "b": 50.0})
    assert math.isnan(mean_of("correct")([]).value)


def test_suites_are_found_by_any_spelling() -> None:
    suite = Suite("MMLU-Pro", "general", "accuracy, %", "paper", "test.jsonl", packages=("no-such-package",))
    assert find(["mmlu_pro", "MMLU-Pro"], [suite]) == [suite]
    with pytest.raises(SuiteError) as caught:
        find(["mmlu"], [suite])
    assert (caught.value.where, caught.value.value, caught.value.allowed) == ("suite", "mmlu", ("mmlu_pro",))
    with pytest.raises(SuiteError) as caught:
        suite.require_packages()
    assert caught.value.value == ["no-such-package"]
    with pytest.raises(SuiteError):
        suite.read(Path())
