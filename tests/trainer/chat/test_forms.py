"""The forms in which data for fine-tuning are published: each is read rightly, or refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from trainer.chat.records import Chat, LeftOut, is_trained, read_chats

SCHEMA = {"name": "lookup", "parameters": {"type": "object", "properties": {"of": {"type": "string"}}}}
TOOL = {"type": "function", "function": SCHEMA}
CALL = [{"type": "function", "function": {"name": "lookup", "arguments": {"of": "007"}}}]
ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def said(*turns: str) -> list[tuple[str, str, bool]]:
    """`s:`, `u:`, `a:` or `t:` and a text; `-a:` for one that is not trained on."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    pairs = [turn.partition(":") for turn in turns]
    return [(roles[name.lstrip("-")], text, name == "a") for name, _, text in pairs]


# Form -> one record of it, and the messages that it is.
READ: dict[str, tuple[Any, list[tuple[str, str, bool]]]] = {
    "openai": ({"messages": [{"role": "system", "content": "s"}, ASK, SAY]}, said("s:s", "u:q", "a:a")),
    "openai weights": (
        {"messages": [ASK, {**SAY, "weight": 0}, ASK, {**SAY, "weight": 1}]}, said("u:q", "-a:a", "u:q", "a:a")
    ),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, said("u:q", "a:a")),
    "alpaca with input and history": (
        {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["p", "b"], ["o", "c"]]},
        said("s:s", "u:p", "a:b", "u:o", "a:c", "u:q\ni", "a:a"),
    ),
    "trl": ({"messages": [ASK, SAY], "source": "x"}, said("u:q", "a:a")),
    "trl prompt and completion": (
        {"prompt": [ASK, {**SAY, "content": "b"}, ASK], "completion": [SAY]}, said("u:q", "-a:b", "u:q", "a:a")
    ),
    "sharegpt": (
        {"id": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        said("u:q", "a:a"),
    ),
    "sharegpt with roles": (
        {"conversations": [{"role": "human", "value": "q"}, {"from": "gpt", "content": "a"}]}, said("u:q", "a:a")
    ),
    "sharegpt, first files": (
        {"items": [{"from": "human", "value": "q"}, {"from": "chatgpt", "value": "a"}]}, said("u:q", "a:a")
    ),
    "sharegpt pairs": (
        {"conversation": [{"human": "q", "assistant": "a"}, {"human": "p", "assistant": "b"}]},
        said("u:q", "a:a", "u:p", "a:b"),
    ),
    "openhermes": (
        {"system_prompt": "s", "topic": None, "custom_instruction": None, "source": "x",
         "conversations": [{"from": "human", "value": "q", "weight": None}, {"from": "gpt", "value": "a"}]},
        said("s:s", "u:q", "a:a"),
    ),
    "openhermes with its system turn": (
        {"system_prompt": "s", "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                                                 {"from": "gpt", "value": "a"}]},
        said("s:s", "u:q", "a:a"),
    ),
    "internlm": (
        [{"role": "system", "content": "s"}, ASK, {**SAY, "loss": False}, {"role": "environment", "content": "t"},
         {**SAY, "loss": True}],
        said("s:s", "u:q", "-a:a", "t:t", "a:a"),
    ),
    "xtuner": (
        {"conversation": [{"system": "s", "input": "q", "output": "a"},
                          {"input": "p", "output": "b", "output_with_loss": False}]},
        said("s:s", "u:q", "a:a", "u:p", "-a:b"),
    ),
    "unsloth": ({"conversations": [ASK, SAY]}, said("u:q", "a:a")),
    "messages as text": ({"messages": json.dumps([ASK, SAY])}, said("u:q", "a:a")),
}  # fmt: skip

REFUSED: dict[str, Any] = {
    "trl text": {"text": "<user> q <assistant> a"},
    "trl prompt and completion as text": {"prompt": "q", "completion": "a"},
    "trl preference": {"prompt": [ASK], "chosen": [SAY], "rejected": [SAY]},
    "dpo as text": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "dpo beside messages": {"messages": [ASK, SAY], "chosen": [ASK, SAY], "rejected": [ASK, SAY]},
    "dpo of llama-factory": {"conversations": [{"from": "human", "value": "q"}], "chosen": {}, "rejected": {"a": 1}},
    "dpo of openai": {"input": {"messages": [ASK]}, "preferred_output": [SAY], "non_preferred_output": [SAY]},
    "kto of trl": {"prompt": [ASK], "completion": [SAY], "label": False},
    "kto of llama-factory": {"messages": [ASK, SAY], "kto_tag": False},
    "xtuner for pre-training": {"conversation": [{"input": "", "output": "a"}]},
    "alpaca with another history": {"instruction": "q", "output": "a", "history": ["q", "a"]},
    "internlm tools as a second system": [{"role": "system", "content": "s"},
                                          {"role": "system", "name": "<|plugin|>", "content": "[]"}, ASK, SAY],
    "dolly": {"instruction": "q", "context": "c", "response": "a"},
    "messages as a repr": {"messages": "[{'role': 'user', 'content': 'q'}]"},
}  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("form", READ)
def test_forms_that_are_read(tmp_path, form):
    row, wanted = READ[form]
    for suffix in ("jsonl", "json", "parquet"):
        if suffix == "parquet" and isinstance(row, list):
            continue
        (chat,) = read_chats(write(tmp_path / f"chats.{suffix}", [row]))
        assert isinstance(chat, Chat), chat
        found = [(message["role"], message["content"], is_trained(message)) for message in chat.messages]
        assert found == wanted
        assert chat.tools is None


@pytest.mark.parametrize("form", REFUSED)
def test_forms_that_are_refused(tmp_path, form):
    good = {"messages": [ASK, SAY]}
    path = write(tmp_path / "chats.jsonl", [good, REFUSED[form], good])
    first, bad, last = read_chats(path)
    assert isinstance(first, Chat)
    assert isinstance(last, Chat)
    assert isinstance(bad, LeftOut)
    assert (bad.kind, bad.where) == ("faulty", f"{path}:2")


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [TOOL], "messages": [
            ASK, {"role": "assistant", "tool_calls": CALL}, {"role": "tool", "content": "r"},
        ]},
        {"functions": [SCHEMA], "messages": [
            ASK,
            {"role": "assistant", "content": None, "function_call": {"name": "lookup", "arguments": '{"of": "007"}'}},
            {"role": "function", "name": "lookup", "content": "r"},
        ]},
        {"tools": json.dumps([TOOL]), "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "lookup", "arguments": {"of": "007"}}'},
            {"from": "observation", "value": "r"},
        ]},
        {"tools": json.dumps([TOOL]), "conversations": [
            {"role": "user", "content": "q"}, {"from": "gpt", "value": "", "tool_calls": CALL},
            {"role": "ipython", "content": "r"},
        ]},
    ],
)  # fmt: skip
def test_calls_of_tools(tmp_path, row):
    (chat,) = read_chats(write(tmp_path / "chats.jsonl", [row]))
    assert isinstance(chat, Chat), chat
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool"]
    assert chat.messages[1]["tool_calls"] == CALL
    assert chat.tools == [TOOL]


def test_thinking_in_sharegpts_spelling(tmp_path):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "reasoning_content": "t"}]
    (chat,) = read_chats(write(tmp_path / "chats.jsonl", [{"conversations": turns}]))
    assert isinstance(chat, Chat)
    assert chat.messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "t"}


def test_a_number_of_parquet_that_json_does_not_have(tmp_path):
    """NaN in a struct of arguments, which JSON lines refuse by themselves."""
    call = {"name": "f", "arguments": {"x": float("nan")}}
    rows = [{"messages": [{"role": "assistant", "tool_calls": [call]}]}]
    (found,) = read_chats(write(tmp_path / "chats.parquet", rows))
    assert isinstance(found, LeftOut)
    assert found.kind == "faulty"
