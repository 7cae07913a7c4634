"""The contract of suites, and the readers of benchmark files."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.evaluation.files import Row, find_file, find_files, read_rows
from trainer.evaluation.perplexity import read_documents
from trainer.evaluation.registry import find
from trainer.evaluation.suite import Item, Scored, Suite, SuiteError, mean_of
from trainer.evaluation.trained_on import files_trained_on

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
    found = list(read_rows(write(tmp_path / f"rows{suffix}"), "id", "answer"))
    assert [row.cells for row in found] == ROWS
    assert [row.number for row in found] == ([1, 3] if suffix == ".jsonl" else [1, 2])  # lines: every second is blank


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
    assert (caught.value.where, caught.value.allowed) == (f"{path}:1", ("id", "question"))
    with pytest.raises(SuiteError) as caught:
        list(read_rows(tmp_path / "rows.txt"))
    assert caught.value.value == ".txt"
    with pytest.raises(SuiteError):
        list(read_rows(tmp_path / "no.jsonl"))
    fault = Row(path, 3, {}).fault("3 constraints have 2 kwargs", value=2, allowed=3)
    assert (fault.where, fault.value, fault.allowed) == (f"{path}:3", 2, 3)


def test_documents_of_all_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    (tmp_path / "b.csv").write_text("text\nsecond\n")
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n\n{"text": " "}\n{"text": ""}\n')
    found, empty = read_documents(tmp_path, None)
    assert [(one.domain, one.text) for one in found] == [("a", "first"), ("b", "second"), ("c", " ")]
    assert empty == ["c.jsonl:1", "c.jsonl:4"]
    (tmp_path / "a.tsv").write_text("text\nthird\n")
    with pytest.raises(SuiteError) as caught:
        read_documents(tmp_path, None)
    assert (caught.value.where, caught.value.value) == (str(tmp_path / "a.tsv"), "a.jsonl")


def test_files_of_chats_that_a_run_was_trained_on_are_found_by_their_content(tmp_path: Path) -> None:
    contents = {"chats/a.jsonl": "x", "chats/b.jsonl": "yz", "bench/test.jsonl": "yz", "bench/c.jsonl": "z"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    data = {"root": str(tmp_path), "chats": {"all": {"path": "chats"}, "gone": {"path": "none"}}}
    (found,) = files_trained_on(data, [tmp_path / "bench"])
    assert str(tmp_path / "bench/test.jsonl") in found
    assert "data.chats.all" in found
    assert list(files_trained_on({}, [tmp_path / "bench", tmp_path / "missing"])) == []


NAN, INFINITE = float("nan"), float("inf")
KINDS = {  # getter: cells that it takes, and cells that it refuses
    "text": (["a", " b"], [None, "", "  ", 3, True, ["a"], NAN]),
    "name": (["a", 7], [None, "", 1.5, True, NAN, ["a"]]),
    "numeral": ([1, -2.5, "3", " 1e3 "], [None, "", "x", "nan", "inf", NAN, INFINITE, True, [1]]),
    "flag": ([True, False], [0, 1, "true", None]),
    "texts": ([["a"], ["a", ""]], [[], "a", ["a", 1], None, [None]]),
    "mapping": ([{}, {"a": 1}], [None, [], "{}", {"a": [NAN]}]),
    "numbers": ([[1, 2.5]], [[1], [1, "2"], [1, NAN], [1, True], None, [1, 2, 3]]),
    "choice": (["A", "B"], ["C", "", None, 1, ["A"]]),
    "said": ([[{"v": "q"}, {"v": "a"}]], [[], [{"v": "q"}], [{"v": "q"}, {"v": None}], [{"v": "q"}, "a"], "q", None]),
}
MORE = {"numbers": (2,), "choice": (("A", "B"),), "said": ("v", 2)}


@pytest.mark.parametrize("getter", KINDS)
def test_a_cell_of_another_kind_is_refused_by_file_row_and_column(tmp_path: Path, getter: str) -> None:
    taken, refused = KINDS[getter]
    path, more = tmp_path / "rows.jsonl", MORE.get(getter, ())
    for cell in taken:
        getattr(Row(path, 4, {"c": cell}), getter)("c", *more)
    for cells in ({}, *({"c": cell} for cell in refused)):
        with pytest.raises(SuiteError) as caught:
            getattr(Row(path, 4, cells), getter)("c", *more)
        assert caught.value.where == f"{path}:4:c"
        assert caught.value.allowed


@pytest.mark.parametrize("line", ['{"a": 1, "a": 2}', r'{"a": "\ud83d"}'])
def test_rows_that_are_not_json_are_refused(tmp_path: Path, line: str) -> None:
    for path, text in ((tmp_path / "a.jsonl", '{"a": 1}\n' + line), (tmp_path / "a.json", f"[{line}]")):
        path.write_text(text)
        with pytest.raises(SuiteError) as caught:
            list(read_rows(path))
        assert caught.value.where == str(path)


def test_nan_is_refused_in_a_column_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": [{"b": Infinity}], "other": NaN, "text": "t"}')
    (row,) = read_rows(tmp_path / "a.jsonl")
    assert row.text("text") == "t"
    with pytest.raises(SuiteError) as caught:
        row.value("a")
    assert caught.value.where == f"{tmp_path}/a.jsonl:1:a"


@pytest.mark.parametrize("text", ["a,b\n1\n", "a,b\n1,2,3\n"])
def test_rows_of_tables_have_a_cell_for_each_column(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SuiteError):
        list(read_rows(tmp_path / "a.csv"))


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
