"""The forms in which rows of questions come.

    {"prompt": "12+30=", "answer": "42"}                                                       ours; TRL, with messages
    {"prompt": [{"role": "user", "content": "..."}], "reward_model": {"ground_truth": "42"},
     "data_source": "...", "extra_info": {...}}                                                verl
    {"question": "...", "answer": "Half of 84 ...\\n#### 42"}                                   GSM8K
    {"problem": "...", "solution": "...", "answer": "42"}                                      MATH, OpenR1
    {"input": "...", "output": "42"} or "expected_answer"                                      NeMo-RL

A row keeps all other fields for rewards, those of `extra_info` beside them; what is null is left out.

Refused is what would be asked or graded as something else: an image beside a text, Alpaca's `instruction` beside its
`input`, messages and objects that are texts of JSON, and an answer without a character, which silence would match.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from parallel.errors import one_of
from trainer.chat.messages import BadRecord, Message, kind_of, read_message

PROMPTS = ("prompt", "question", "problem", "input")  # the first that a row has is its prompt
ANSWERS = ("answer", "expected_answer", "ground_truth", "solution", "output")  # behind that of reward_model
MARK = re.compile(r"(?:^|[\r\n])[ \t]*####(?!#)([^\r\n]*)\s*\Z")  # GSM8K: the last line, behind a derivation
SEEN = ("image", "images", "video", "videos", "audio", "audios")  # of a prompt that is not only text
MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")  # that became a text
OBJECTS = ("reward_model", "extra_info")  # of verl
Answer = str | list[str]


def read_row(row: Any, spelled: Any) -> tuple[str | list[Message], Answer, dict[str, Any]]:
    """Prompt, answer and further fields of a row. spelled: the row with its numbers as they are written.

    An answer is a text, or several right ones; the first is trained on. A row without an answer has `tests`,
    and its answer is empty. Raises BadRecord.
    """
    if not isinstance(row, Mapping):
        raise BadRecord(f"it is {kind_of(row)}, not an object")
    key = next((name for name in PROMPTS if name in row), None)
    if key is None:
        raise BadRecord(f"it has no prompt; add {one_of(PROMPTS)}")
    _refuse_what_is_not_asked(row, key)
    prompt = _prompt(row[key], key)
    extra = row.get("extra_info")
    lifted = {**(extra if isinstance(extra, Mapping) else {}), **row}
    data = {name: value for name, value in lifted.items() if name != key and not _is_missing(value)}
    name, value = _answer({**lifted, **spelled})
    data.pop(name, None)
    answer = [_behind_mark(one) for one in value] if isinstance(value, list) else _behind_mark(value)
    if answer != value:
        data.setdefault("solution", value)
    if not all(map(str.strip, answer if isinstance(answer, list) else [answer])) and not row.get("tests"):
        raise BadRecord(f"{name} is empty; give a text or a number")
    return prompt, answer, data


def _refuse_what_is_not_asked(row: Mapping[str, Any], key: str) -> None:
    """Refuse fields that belong to the prompt and would not be a part of it, and objects that are texts."""
    for name in SEEN:
        if not _is_missing(row.get(name)) and row[name] != []:
            raise BadRecord(f"{name} belongs to the prompt, and questions are texts; leave it out")
    instruction = row.get("instruction")
    if key == "input" and isinstance(instruction, str) and instruction.strip():
        raise BadRecord("instruction belongs to the input and would not be asked; give both as one prompt")
    for name in OBJECTS:
        if isinstance(row.get(name), str) and row[name].lstrip().startswith("{"):
            raise BadRecord(f"{name} is a text of JSON; give an object")


def _behind_mark(answer: str) -> str:
    found = MARK.search(answer)
    return found[1].strip() if found else answer


def _prompt(value: Any, key: str) -> str | list[Message]:
    if isinstance(value, str):
        if not value.strip():
            raise BadRecord(f"{key} is empty; give a text")
        if MESSAGES.match(value):
            raise BadRecord(f"{key} is a text of JSON; give the messages as a list")
        return value
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{key} is {kind_of(value)}; give a text, or a list of messages with roles")
    messages = [read_message(one, f"{key}[{place}]") for place, one in enumerate(value)]
    if messages[-1]["role"] == "assistant":
        raise BadRecord(f"{key} ends with a message of the assistant; end it with what is asked")
    return messages


def _is_missing(value: Any) -> bool:
    """Return True for null, and for NaN, which pandas writes into Parquet instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _answer(row: Mapping[str, Any]) -> tuple[str, Answer]:
    """The key of the answer and its text or texts."""
    model = row.get("reward_model")
    if isinstance(model, Mapping) and "ground_truth" in model:
        return "reward_model", _texts(model["ground_truth"], "reward_model.ground_truth")
    name = next((name for name in ANSWERS if name in row), None)
    if name is not None:
        return name, _texts(row[name], name)
    if row.get("tests"):
        return "answer", ""
    raise BadRecord(f"it has no answer; add {one_of((*ANSWERS, 'reward_model.ground_truth', 'tests'))}")


def _texts(value: Any, key: str) -> Answer:
    if isinstance(value, list):
        if not value:
            raise BadRecord(f"{key} is an empty list; give one text or more")
        return [_text(one, f"{key}[{place}]") for place, one in enumerate(value)]
    return _text(value, key)


def _text(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise BadRecord(f"{key} is {value if number else kind_of(value)}; give a text or a number")
    return format(value, "f") if isinstance(value, Decimal) else str(value)
