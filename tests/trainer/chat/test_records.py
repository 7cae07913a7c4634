"""Records of chats: spellings, texts that look like numbers, and what is wrong with one, by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from parallel.errors import UserError
from trainer.chat.forms import read_record
from trainer.chat.messages import BadRecord, read_messages
from trainer.chat.records import Chat, LeftOut, chat_files, is_trained, read_chats

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def only(path: Path) -> Chat:
    (found,) = read_chats(path)
    assert isinstance(found, Chat)
    return found


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_texts_stay_texts(tmp_path, suffix):
    """Whatever the other records hold: "007" and "1.50" are texts, and 1.5 and 7 are numbers."""
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
        for text in ("007", "1.50", "true", "null", "1e3", "-0", "2026-12-01", "01:25", "NaN")
    ]
    path = tmp_path / f"chats.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    found = list(read_chats(path))
    assert [[message["content"] for message in chat.messages] for chat in found] == [
        [message["content"] for message in row["messages"]] for row in rows
    ]


def test_numbers_and_texts_of_arguments(tmp_path):
    arguments = {"code": "007", "price": "1.50", "n": 7, "x": 1.5, "on": True, "none": None}
    for spelling in (arguments, json.dumps(arguments)):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": spelling}}
        chat = only(written(tmp_path / "a.jsonl", {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}))
        assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == arguments
        assert "content" not in chat.messages[1]


def test_a_list_in_one_file_has_the_lines_of_its_items(tmp_path):
    text = '\n[\n  {"messages": []},\n\n  {"messages": [\n     3]},\n  {"conversations": '
    text += '[{"from": "gpt",\n "value": "x"}]}\n]\n'
    found = list(read_chats(written(tmp_path / "a.json", text)))
    assert [one.where for one in found] == [f"{tmp_path}/a.json:{line}" for line in (3, 5, 7)]
    assert [type(one) for one in found] == [LeftOut, LeftOut, Chat]


@pytest.mark.parametrize("text", ['[{"messages": []}', '[{"messages": []} 3]', "[1, }", '[{"a": NaN}]', "[" * 100_000])
def test_a_broken_list(tmp_path, text):
    last = list(read_chats(written(tmp_path / "a.json", text)))[-1]
    assert isinstance(last, LeftOut)
    assert (last.kind, last.where) == ("faulty", f"{tmp_path}/a.json:1")


def test_lines_in_a_file_called_json(tmp_path):
    assert len(list(read_chats(written(tmp_path / "a.json", {"messages": [ANSWER]}, "", {"messages": [ANSWER]})))) == 2


def test_sharegpt(tmp_path):
    row = {
        "system": "s",
        "tools": json.dumps([{"type": "function", "function": {"name": "f"}}]),
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"x": "007"}})},
            {"from": "observation", "value": "r"},
            {"from": "gpt", "value": "a", "loss": False},
            {"from": "gpt", "value": "b", "weight": 1},
        ],
    }
    chat = only(written(tmp_path / "a.jsonl", row))
    assert [message["role"] for message in chat.messages] == [
        "system", "user", "assistant", "tool", "assistant", "assistant",
    ]  # fmt: skip
    assert chat.messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": "007"}}
    assert chat.tools == [{"type": "function", "function": {"name": "f"}}]
    assert [is_trained(message) for message in chat.messages] == [False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("message", "thinking", "content"),
    [
        ({"content": "a", "reasoning_content": "t"}, "t", "a"),
        ({"content": "a", "thinking": "t"}, "t", "a"),
        ({"content": "a", "reasoning": "t"}, "t", "a"),
        ({"content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]}, "t", "a"),
        ({"content": [{"type": "reasoning", "text": "t"}, {"type": "text", "text": "a"}, "b"]}, "t", "ab"),
        ({"content": [{"type": "text", "text": "a"}, {"text": "b"}]}, None, "ab"),
    ],
)
def test_thinking_and_parts(message, thinking, content):
    (found,) = read_messages([{"role": "assistant", **message}])
    assert (found.get("reasoning_content"), found["content"]) == (thinking, content)
    assert not {"thinking", "reasoning"} & found.keys()


def test_older_spellings_of_calls():
    (found,) = read_messages([{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}])
    (flat,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}])
    assert (
        found["tool_calls"] == flat["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    )
    assert read_messages([{"role": "function", "content": "r"}])[0]["role"] == "tool"


FAULTS = [
    "{", "[3]", "3", '{"text": "a"}', '{"messages": 3}', '{"messages": "a"}', '{"messages": [3]}',
    '{"messages": [{"content": "a"}]}', '{"messages": [{"role": "bot", "content": "a"}]}',
    '{"messages": [{"role": ["user"], "content": "a"}]}',
    '{"messages": [{"role": "user", "content": 3}]}', '{"messages": [{"role": "user"}]}',
    '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
    '{"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": {"name": "f"}}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\\"x\\": NaN}"}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\\"x\\": 1e999}"}]}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\\"x\\": \\"\\\\ud800\\"}"}]}]}',
    '{"conversations": [{"from": "function_call", "value": "{\\"name\\": \\"f\\", \\"arguments\\": {\\"x\\": NaN}}"}]}',
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1e999}}]}]}',
    '{"messages": [{"role": "assistant", "content": "a"}], "tools": [{"x": 1e999}]}',
    '{"messages": "[{\\"role\\": \\"assistant\\", \\"content\\": \\"\\\\ud800\\"}]"}',
    '{"messages": "[{\\"role\\": \\"assistant\\", \\"content\\": NaN}]"}',
    '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "text": "a"}]}',
    '{"messages": [{"role": "assistant", "content": "a", "value": "b"}]}',
    '{"messages": [{"role": "assistant", "content": "a"}], "conversations": [{"from": "gpt", "value": "b"}]}',
    '{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}], "system": "c"}',
    '{"messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, '
    '{"role": "assistant", "content": "c"}]}',
    '{"messages": [{"role": "assistant", "content": "a"}], "system": 3}',
    '{"conversations": [{"from": "function_call", "value": "{\\"name\\": \\"f\\", \\"arguments\\": NaN}"}]}',
    '{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}',
    '{"messages": [{"role": "assistant", "content": "a", "weight": "1"}]}',
    '{"messages": [{"role": "assistant", "content": "a", "loss": 1}]}',
    '{"messages": [{"role": "assistant", "content": "a", "thinking": 3}]}',
    '{"messages": [{"role": "assistant", "content": "a"}], "tools": "x"}',
    '{"messages": [{"role": "assistant", "content": "a"}], "tools": [3]}',
    '{"messages": [{"role": "assistant", "content": "a"}], "chat_template_kwargs": 3}',
    '{"conversations": [{"from": "bot", "value": "a"}]}', '{"conversations": [{"from": "gpt", "value": 3}]}',
    '{"conversations": [{"from": 3, "value": "a"}]}', '{"conversations": [{"from": "function_call", "value": "f()"}]}',
    '{"messages": [{"role": "assistant", "content": "a", "x": Infinity}]}',
    '{"messages": [{"role": "user", "content": "\\ud800"}]}',
    '{"messages": [{"role": "user", "content": "\\xff"}]}',
]  # fmt: skip


@pytest.mark.parametrize("line", FAULTS)
def test_a_faulty_record_is_named_and_the_others_are_read(tmp_path, line):
    good = {"messages": [USER, ANSWER]}
    found = list(read_chats(written(tmp_path / "a.jsonl", good, line, good)))
    assert [type(one) for one in found] == [Chat, LeftOut, Chat]
    assert (found[1].where, found[1].kind) == (f"{tmp_path}/a.jsonl:2", "faulty")
    assert found[1].text


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_bytes_that_are_not_utf8(tmp_path, name):
    record = b'{"messages": [{"role": "assistant", "content": "\xff"}]}'
    (tmp_path / name).write_bytes(record if name == "a.jsonl" else b"[" + record + b"]")
    (found,) = read_chats(tmp_path / name)
    assert isinstance(found, LeftOut)
    assert found.kind == "faulty"


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([], "empty"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], "empty"),
        ([USER], "without an assistant's turn"),
        ([USER, {"role": "assistant", "content": ""}], "without an assistant's turn"),
        ([USER, {**ANSWER, "weight": 0}], "without an assistant's turn"),
    ],
)
def test_records_without_anything_to_train_on(tmp_path, messages, kind):
    (found,) = read_chats(written(tmp_path / "a.jsonl", {"messages": messages}))
    assert found == LeftOut(f"{tmp_path}/a.jsonl:1", kind)


def test_parquet_structs_and_json_columns(tmp_path):
    """A struct has every key that any row has; those without a value are not there. A column may hold JSON."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "1.50"}}}
    rows = [{"messages": [USER, ANSWER]}, {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [chat.messages[1] for chat in read_chats(tmp_path / "a.parquet")] == [
        ANSWER, {"role": "assistant", "tool_calls": [call]},
    ]  # fmt: skip
    texts = [{"messages": json.dumps(row["messages"])} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), tmp_path / "b.parquet")
    assert [chat.messages[1] for chat in read_chats(tmp_path / "b.parquet")][1]["tool_calls"] == [call]
    assert [chat.where for chat in read_chats(tmp_path / "b.parquet")][1] == f"{tmp_path}/b.parquet:2"


def test_files_of_a_source(tmp_path):
    for name in ("b.jsonl", "a.json", "deep/c.parquet", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    names = lambda found: [str(file.relative_to(tmp_path)) for file in found]  # noqa: E731
    assert names(chat_files(".", tmp_path)) == ["a.json", "b.jsonl", "deep/c.parquet"]
    assert names(chat_files("*.jsonl", tmp_path)) == ["b.jsonl"]
    assert names(chat_files(str(tmp_path / "a.json"))) == ["a.json"]
    for path in ("nothing", "*.csv", "notes.txt"):
        with pytest.raises(UserError) as failure:
            chat_files(path, tmp_path)
        assert failure.value.where == str(tmp_path / path)
        assert failure.value.allowed


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_files_that_cannot_be_read(tmp_path, name):
    if name.endswith("parquet"):
        (tmp_path / name).write_text("no")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as failure:
        list(read_chats(tmp_path / name))
    assert failure.value.where == str(tmp_path / name)


def test_a_record_has_template_values_of_its_own():
    _, tools, values = read_record({"messages": [ANSWER], "chat_template_kwargs": {"enable_thinking": False}})
    assert (tools, values) == (None, {"enable_thinking": False})
    with pytest.raises(BadRecord):
        read_record(None)
