"""The forms in which rows of questions come.

    {"prompt": "12+30=", "answer": "42"}                                                       ours; TRL, with messages
    {"prompt": [{"role": "user", "content": "..."}], "reward_model": {"ground_truth": "42"},
     "data_source": "...", "extra_info": {...}}                                                verl
    {"question": "...", "answer": "Half of 84 ...\\n#### 42"}                                   GSM8K
    {"problem": "...", "solution": "...", "answer": "42"}                                      MATH, OpenR1
    {"input": "...", "output": "42"} or "expected_answer"                                      NeMo-RL

A row keeps all other fields for rewards, those of `extra_info` beside them; what is null is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from parallel.errors import one_of
from trainer.chat.messages import BadRecord, Message, kind_of, read_message

PROMPTS = ("prompt", "question", "problem", "input")  # the first that a row has is its prompt
ANSWERS = ("answer", "expected_answer", "ground_truth", "solution", "output")  # behind that of reward_model
MARK = "#### "  # GSM8K: the last line of an answer, behind its derivation
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
    prompt = _prompt(row[key], key)
    extra = row.get("extra_info")
    lifted = {**(extra if isinstance(extra, Mapping) else {}), **row}
    data = {name: value for name, value in lifted.items() if name != key and not _is_missing(value)}
    name, value = _answer({**lifted, **spelled})
    data.pop(name, None)
    if name == "answer" and isinstance(value, str) and (last := value.rstrip().rpartition("\n")[2]).startswith(MARK):
        data.setdefault("solution", value)
        value = last.removeprefix(MARK).strip()
    return prompt, value, data


def _prompt(value: Any, key: str) -> str | list[Message]:
    if isinstance(value, str):
        if not value.strip():
            raise BadRecord(f"{key} is empty; give a text")
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
    return str(value)
