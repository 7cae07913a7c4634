"""Files of questions: the rows of other programs, numbers as they are written, and what is refused."""

import gzip
import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from trainer.data.errors import DataError
from trainer.data.questions.records import read_questions

USER = {"role": "user", "content": "84 / 2?"}


def read(tmp_path, *rows, name="q.jsonl"):
    """The questions of a file with these lines, each a text, bytes or an object."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines) + b"\n")
    return read_questions(path)


def read_parquet(tmp_path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "q.parquet")
    return read_questions(tmp_path / "q.parquet")


GSM8K = "Half of 84 is 84/2=<<84/2=42>>42.\n#### 42"


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "data"),
    [
        ({"prompt": "84/2=", "answer": "42", "unit": None, "n": 3}, "84/2=", "42", {"n": 3}),
        ({"prompt": [USER], "answer": "42", "source": "trl"}, [USER], "42", {"source": "trl"}),
        ({"prompt": [USER], "ground_truth": "42"}, [USER], "42", {}),
        (
            {"data_source": "openai/gsm8k", "prompt": [USER], "ability": "math",
             "reward_model": {"style": "rule", "ground_truth": "42"}, "extra_info": {"index": 0, "answer": GSM8K}},
            [USER], "42",
            {"data_source": "openai/gsm8k", "ability": "math", "index": 0, "answer": GSM8K,
             "extra_info": {"index": 0, "answer": GSM8K}},
        ),
        ({"question": "84 / 2?", "answer": GSM8K}, "84 / 2?", "42", {"solution": GSM8K}),
        ({"problem": "84 / 2?", "solution": "Half.", "answer": "42"}, "84 / 2?", "42", {"solution": "Half."}),
        ({"problem": "84 / 2?", "expected_answer": "42"}, "84 / 2?", "42", {}),
        ({"input": "84 / 2?", "output": "42"}, "84 / 2?", "42", {}),
        ({"input": "84 / 2?", "expected_answer": "42"}, "84 / 2?", "42", {}),
        ({"prompt": "add", "tests": ["assert add(1, 1) == 2"]}, "add", "", {"tests": ["assert add(1, 1) == 2"]}),
        ({"prompt": "84/2=", "answer": ["42", 42.0]}, "84/2=", ["42", "42.0"], {}),
        ({"question": "?", "answer": "So.\r\n#### 1,234 \r\n"}, "?", "1,234", {"solution": "So.\r\n#### 1,234 \r\n"}),
        ({"prompt": [USER], "reward_model": {"ground_truth": GSM8K}}, [USER], "42", {"solution": GSM8K}),
        ({"prompt": "?", "solution": "So\n  ####42"}, "?", "42", {"solution": "So\n  ####42"}),
        ({"prompt": "?", "answer": [GSM8K, "7"]}, "?", ["42", "7"], {"solution": [GSM8K, "7"]}),
        ({"prompt": "?", "answer": "#### 1\nDone"}, "?", "#### 1\nDone", {}),
        ({"prompt": "?", "answer": "1", "images": [], "image": None}, "?", "1", {"images": []}),
        ({"prompt": "[{1, 2}] = ?", "answer": "1"}, "[{1, 2}] = ?", "1", {}),
    ],
)  # fmt: skip
def test_rows_of_other_programs_are_read(tmp_path, row, prompt, answer, data):
    (found,) = read(tmp_path, row)
    assert (found.prompt, found.answer, found.data) == (prompt, answer, data)
    assert found.where == f"{tmp_path}/q.jsonl:1"


def test_numbers_keep_their_spelling(tmp_path):
    written = ['"007"', "7", "1.50", "1e-6", "-0.0", "123456789012345678901234567890", "1.0E+3", '"1,234"']
    rows = [f'{{"prompt": "?", "answer": {one}, "tolerance": 0.50}}' for one in written]
    found = read(tmp_path, *rows)
    assert [one.answer for one in found] == [one.strip('"') for one in written]
    assert {one.data["tolerance"] for one in found} == {0.5}
    assert [one.answer for one in read(tmp_path, '{"prompt": "?", "answer": [1.50, "007"]}')] == [["1.50", "007"]]


def test_lines_end_with_a_line_feed_and_a_mark_in_front_is_no_text(tmp_path):
    text = "one\u2028two\u2029three\x85four"
    row = json.dumps({"prompt": text, "answer": text}, ensure_ascii=False).encode()
    found = read(tmp_path, b"\xef\xbb\xbf" + row + b"\r", b"", b" \t\r", row)
    assert [(one.prompt, one.answer) for one in found] == [(text, text)] * 2
    assert [one.where.rpartition(":")[2] for one in found] == ["1", "4"]


def test_packed_lines_and_parquet_are_read(tmp_path):
    row = {"prompt": "84/2=", "answer": "42"}
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (found,) = read_questions(tmp_path / "q.jsonl.gz")
    assert (found.prompt, found.answer) == ("84/2=", "42")
    verl = [{"style": "rule", "ground_truth": "42"}, {"style": "rule", "ground_truth": "007"}]
    found = read_parquet(tmp_path, prompt=[[USER], [USER]], reward_model=verl, tolerance=[float("nan"), 0.5])
    assert [(one.prompt, one.answer, one.data) for one in found] == [
        ([USER], "42", {}), ([USER], "007", {"tolerance": 0.5})
    ]  # fmt: skip
    assert found[1].where == f"{tmp_path}/q.parquet:2"
    found = read_parquet(tmp_path, question=["a", "b"], answer=pyarrow.array([Decimal("1.50"), Decimal("7.00")]))
    assert [one.answer for one in found] == ["1.50", "7.00"]


def test_numbers_of_parquet_are_the_shortest_that_stand_for_them(tmp_path):
    gap = read_parquet(tmp_path, prompt=["a", "b"], answer=pyarrow.array([7.0, 1e-6]))
    assert [one.answer for one in gap] == ["7", "1e-06"]
    for kind in (pyarrow.float32(), pyarrow.float16()):
        nested = pyarrow.array([[{"ground_truth": 0.1, "other": None}]], pyarrow.list_(
            pyarrow.struct([("ground_truth", kind), ("other", kind)])))  # fmt: skip
        made = {"reward_model": nested.flatten(), "parts": nested, "tolerance": pyarrow.array([0.3], kind)}
        (found,) = read_parquet(tmp_path, prompt=["a"], **made)
        assert (found.answer, found.data) == ("0.1", {"parts": [{"ground_truth": 0.1}], "tolerance": 0.3})
    small = read_parquet(tmp_path, prompt=["a"], answer=pyarrow.array([Decimal("0.00000120")]))
    assert [one.answer for one in small] == ["0.00000120"]


def test_a_column_of_parquet_that_is_there_twice_is_refused(tmp_path):
    columns = [pyarrow.array([text]) for text in ("?", "1", "2")]
    table = pyarrow.Table.from_arrays(columns, names=["prompt", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    with pytest.raises(DataError) as caught:
        read_questions(tmp_path / "q.parquet")
    assert caught.value.where == f"{tmp_path}/q.parquet"
    assert "answer" in caught.value.value


GOOD = '{"prompt": "84/2=", "answer": "42"}'


@pytest.mark.parametrize(
    "row",
    [
        '{"prompt": null, "answer": "42"}', '{"prompt": "?", "answer": null}', '{"prompt": "?", "answer": NaN}',
        '{"prompt": "?", "answer": -Infinity}', '{"prompt": "?", "answer": 1e999}', '{"prompt": "?", "answer": true}',
        '{"prompt": false, "answer": "42"}', '{"prompt": "?", "answer": {"a": 1}}', '{"prompt": "?", "answer": []}',
        '{"prompt": "?", "answer": ["42", null]}', '{"prompt": "?", "answer": [["42"]]}', '{"prompt": 7, "answer": 1}',
        '{"prompt": "a", "prompt": "b", "answer": "42"}', '{"prompt": "?", "answer": "1", "x": {"a": 1, "a": 2}}',
        '{"prompt": "\\\\ud83d", "answer": "42"}', '{"prompt": "?", "answer": "\\\\udc00"}', '{"prompt": "?"}',
        '{"answer": "42"}', '{"prompt": "", "answer": "42"}', '{"prompt": " \\n", "answer": "42"}', '["?", "42"]',
        '{"prompt": [], "answer": "42"}', '{"prompt": ["?"], "answer": "42"}', '{"prompt": "?", "answer": "42"',
        '{"prompt": [{"role": "user", "content": null}], "answer": "42"}', "42", '{"prompt": "?", "tests": []}',
        '{"prompt": [{"role": "who", "content": "?"}], "answer": "42"}', b'{"prompt": "\xff", "answer": "42"}',
        '{"prompt": [{"role": "assistant", "content": "?"}], "answer": "42"}', "[" * 100_000,
        '{"prompt": "?", "reward_model": {"ground_truth": null}}', GOOD + GOOD,
        '{"prompt": "?", "answer": ""}', '{"prompt": "?", "answer": ["42", " "]}',
        '{"prompt": "?", "answer": "So\\n####"}',
        '{"prompt": "<image>?", "answer": "1", "images": ["a.png"]}',
        '{"prompt": "?", "answer": "1", "image": "a.png"}',
        '{"prompt": "?", "answer": "1", "videos": [{"bytes": "a"}]}',
        '{"instruction": "Translate", "input": "Hallo", "output": "hello"}',
        json.dumps({"prompt": json.dumps([USER]), "answer": "1"}), json.dumps({"prompt": str([USER]), "answer": "1"}),
        '{"prompt": "?", "answer": "1", "reward_model": "{\\"ground_truth\\": \\"2\\"}"}',
        '{"prompt": "?", "answer": "1", "extra_info": "{\\"unit\\": \\"m\\"}"}',
    ],
)  # fmt: skip
def test_a_row_that_means_something_else_is_refused_with_its_line(tmp_path, row):
    row = row.replace("\\\\u", "\\u") if isinstance(row, str) else row
    with pytest.raises(DataError) as caught:
        read(tmp_path, GOOD, row, GOOD)
    assert caught.value.where == f"{tmp_path}/q.jsonl:2"
    assert caught.value.allowed


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["?", None], "answer": ["1", "2"]}, {"prompt": ["?", "?"], "answer": ["1", None]},
        {"prompt": ["?", "?"], "answer": [1.0, float("nan")]}, {"prompt": ["?", "?"], "answer": [1, None]},
        {"prompt": ["?", b"?"], "answer": ["1", "2"]} and {"prompt": [[], []], "answer": ["1", "2"]},
    ],
)  # fmt: skip
def test_a_row_of_parquet_without_a_value_is_refused_by_its_number(tmp_path, columns):
    with pytest.raises(DataError) as caught:
        read_parquet(tmp_path, **columns)
    assert caught.value.where.startswith(f"{tmp_path}/q.parquet:")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", None), ("q.jsonl", b""), ("q.jsonl", b"\n \n"), ("q.jsonl.gz", GOOD.encode()),
        ("q.jsonl.gz", gzip.compress(GOOD.encode() * 99, mtime=0)[:60]),
        ("q.parquet", GOOD.encode()), ("q.parquet", b""),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_questions(tmp_path / name)
    assert caught.value.where == f"{tmp_path}/{name}"
    assert caught.value.allowed
