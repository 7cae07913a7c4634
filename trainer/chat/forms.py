"""The forms in which records of chats come, each as messages for a chat template.

    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}                    OpenAI, TRL, Unsloth
    [{"role": "user", "content": "..."}, ...]                                                  InternLM, XTuner
    {"prompt": [...], "completion": [...]}                                                     TRL
    {"conversations": [{"from": "human", "value": "..."}, ...], "system": "...", "tools": "..."}   ShareGPT, OpenHermes
    {"conversation": [{"system": "...", "input": "...", "output": "..."}, ...]}                XTuner
    {"conversation": [{"human": "...", "assistant": "..."}, ...]}                              ShareGPT, as pairs
    {"instruction": "...", "input": "...", "output": "...", "history": [["...", "..."], ...]}  Alpaca

A record that compares answers (DPO, KTO) is refused: trained on as it is, its worse answer would be learned, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from parallel.errors import one_of
from trainer.chat.messages import BadRecord, Message, checked_json, json_value, kind_of, read_message

VALUES = "chat_template_kwargs"  # of a record: names that its template reads
TURNS = ("messages", "conversations", "conversation", "items")  # keys of a list of turns
SYSTEM = ("system", "system_prompt")  # keys of instructions beside the turns
PAIRS = (("input", "output"), ("human", "assistant"))  # keys of a turn that is a question with its answer
COMPARED = ("rejected", "non_preferred_output", "kto_tag")  # keys of records that compare answers
SYSTEM_ROLES = ("system", "developer")
READ = "messages, conversations, a prompt with its completion, or an instruction with its output"


def read_record(row: Any) -> tuple[list[Message], list[Any] | None, dict[str, Any]]:
    """Messages, tools and template values of a record. Raises BadRecord."""
    if isinstance(row, list):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise BadRecord(f"it is {kind_of(row)}, not an object with messages or conversations")
    row = {name: value for name, value in row.items() if value is not None}
    if compares := next((name for name in COMPARED if row.get(name) not in (None, "", [])), None):
        raise BadRecord(f"it has {compares}: it compares answers, and fine-tuning takes one as messages")
    found = [message for turn in _turns(row) for message in turn]
    for place, (one, next_one) in enumerate(pairwise(found)):
        if one["role"] in SYSTEM_ROLES and next_one["role"] in SYSTEM_ROLES:
            raise BadRecord(f"messages[{place}] and messages[{place + 1}] are system messages; make one of them")
    found = _with_system(row, found)
    values = json_value(row.get(VALUES) or {}, VALUES)
    if not isinstance(checked_json(values, VALUES), Mapping):
        raise BadRecord(f"{VALUES} is {kind_of(values)}, not an object")
    return found, _tools(row) or None, dict(values)


def _tools(row: Mapping[str, Any]) -> list[Any] | None:
    """OpenAI's tools; `functions` is their older name, for the schemas alone."""
    key = "tools" if row.get("tools") else "functions"
    found = checked_json(json_value(row.get(key) or None, key), key)
    if found is not None and not (isinstance(found, list) and all(isinstance(tool, Mapping) for tool in found)):
        raise BadRecord(f"{key} is not a list of JSON schemas of functions")
    return [{"type": "function", "function": one} for one in found or ()] if key == "functions" else found


def _turns(row: Mapping[str, Any]) -> Iterator[list[Message]]:
    """The messages of each turn."""
    keys = [name for name in TURNS if name in row]
    if len(keys) > 1:
        raise BadRecord(f"it has {' and '.join(keys)}; keep one of them")
    if keys:
        yield from (_turn(turn, f"{keys[0]}[{place}]") for place, turn in enumerate(_listed(row[keys[0]], keys[0])))
    elif "prompt" in row and "completion" in row:
        yield from _continued(row)
    elif "instruction" in row and "output" in row:
        yield from _alpaca(row)
    else:
        names = one_of(map(str, row)) or "nothing"
        raise BadRecord(f"it has {names}; give {READ}")


def _listed(turns: Any, key: str) -> Sequence[Any]:
    found = json_value(turns, key)
    if not isinstance(found, list):
        raise BadRecord(f"{key} is {kind_of(found)}, not a list")
    return found


def _turn(turn: Any, at: str) -> list[Message]:
    """One message; or those of a question with its answer, before them the instructions beside it."""
    pair = None
    if isinstance(turn, Mapping) and not {"role", "from"} & turn.keys():
        pair = next((pair for pair in PAIRS if pair[1] in turn), None)
    if pair is None:
        return [read_message(turn, at)]
    asked, answered = pair
    opening = [read_message({"role": "system", "content": turn["system"]}, at)] if turn.get("system") else []
    if not turn.get(asked):
        raise BadRecord(f"{at}.{asked} is missing or empty")
    answer = {"role": "assistant", "content": turn[answered], "loss": turn.get("output_with_loss")}
    return [*opening, read_message({"role": "user", "content": turn[asked]}, at), read_message(answer, at)]


def _continued(row: Mapping[str, Any]) -> Iterator[list[Message]]:
    """TRL's prompt and completion; only the completion is trained on."""
    if "label" in row:
        raise BadRecord("it has label: it compares answers, and fine-tuning takes one as messages")
    for key in ("prompt", "completion"):
        if isinstance(row[key], str) and not row[key].lstrip().startswith("["):
            raise BadRecord(f"{key} is a text, which no chat template writes; give a list of messages")
        for place, turn in enumerate(_listed(row[key], key)):
            message = read_message(turn, f"{key}[{place}]")
            yield [{**message, "weight": 0} if key == "prompt" and message["role"] == "assistant" else message]


def _alpaca(row: Mapping[str, Any]) -> Iterator[list[Message]]:
    """An instruction, a line below it its input, and what was asked before."""
    for place, pair in enumerate(_listed(row.get("history") or [], "history")):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRecord(f"history[{place}] is not a question and its answer")
        yield [_said(role, text, f"history[{place}]") for role, text in zip(("user", "assistant"), pair, strict=True)]
    asked = [row[key] for key in ("instruction", "input") if row.get(key)]
    if not all(isinstance(text, str) for text in asked):
        raise BadRecord("instruction and input are not texts")
    yield [_said("user", "\n".join(asked), "instruction"), _said("assistant", row["output"], "output")]


def _said(role: str, text: Any, at: str) -> Message:
    return read_message({"role": role, "content": text}, at)


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Put the instructions beside the turns in front of them."""
    for key in SYSTEM:
        text = row.get(key)
        if not text:
            continue
        if not isinstance(text, str):
            raise BadRecord(f"{key} is {kind_of(text)}, not a text")
        first = next((one for one in messages if one["role"] in SYSTEM_ROLES), None)
        if first is None:
            messages = [{"role": "system", "content": text}, *messages]
        elif first["content"] != text:
            raise BadRecord(f"it has {key} beside a system message with another text; keep one of them")
    return messages
