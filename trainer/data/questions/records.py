"""Questions in JSONL, a record on each line. No torch here.

{"prompt": "12+30=", "answer": "42", ...}    prompt: text, or OpenAI messages; answer: what a reward compares with;
                                             all other fields are kept for rewards
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError

FORM = 'an object such as {"prompt": "12+30=", "answer": "42"}'


@dataclass(frozen=True)
class QuestionRecord:
    """A line of a file. where: file and line. data: the fields beside prompt and answer."""

    where: str
    prompt: str | list[Mapping[str, Any]]
    answer: Any
    data: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The prompt as one text, the same for equal prompts."""
        return self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt, sort_keys=True)


def read_questions(path: Path) -> list[QuestionRecord]:
    """The questions of a file, in its order; empty lines are left out. Raises DataError, which names file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 ({error.reason})"
        allowed = "a readable .jsonl file of questions"
        raise DataError(f"{path}: {reason}; give {allowed}", where=str(path), allowed=allowed) from error
    found = [_record(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        allowed = "one question or more"
        raise DataError(f"{path} is empty; give {allowed}", where=str(path), value=0, allowed=allowed)
    return found


def _record(where: str, line: str) -> QuestionRecord:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); give {FORM}", where=where, value=line, allowed=FORM) from None
    if not isinstance(row, dict) or "prompt" not in row:
        raise DataError(f"{where}: there is no prompt; give {FORM}", where=where, value=row, allowed=FORM)
    prompt = row.pop("prompt")
    messages = isinstance(prompt, list) and all(isinstance(one, dict) and "role" in one for one in prompt)
    if not prompt or not (isinstance(prompt, str) or messages):
        allowed = "a text, or a list of messages with roles"
        text = f"{where}: the prompt is neither text nor messages; give {allowed}"
        raise DataError(text, where=where, value=prompt, allowed=allowed)
    return QuestionRecord(where, prompt, row.pop("answer", None), row)
