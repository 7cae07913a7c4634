"""Questions in files: JSON lines, .jsonl or of any other name, packed (.gz) or not, and Parquet. No torch here.

Every row is checked as it is read, and a fault names its file and line (of Parquet: its row).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from trainer.chat.messages import BadRecord, Message
from trainer.data.errors import DataError
from trainer.data.questions.forms import Answer, read_row
from trainer.storage.json_text import read_json
from trainer.storage.parquet import parquet_rows

FORM = 'an object such as {"prompt": "12+30=", "answer": "42"} on each line'
WHOLE = 2**53  # floats below it have all whole numbers


@dataclass(frozen=True)
class QuestionRecord:
    """A row of a file. where: file and line. answer: a text, or several that are right. data: the fields beside prompt
    and answer."""

    where: str
    prompt: str | list[Message]
    answer: Answer
    data: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The prompt as one text, the same for equal prompts."""
        return self.prompt if isinstance(self.prompt, str) else json.dumps(self.prompt, sort_keys=True)

    @property
    def label(self) -> str:
        """The answer that is trained on where there are several."""
        return self.answer if isinstance(self.answer, str) else self.answer[0]


def read_questions(path: Path) -> list[QuestionRecord]:
    """The questions of a file, in its order; empty lines are left out. Raises DataError, which names file and line."""
    found = []
    try:
        for number, row in (_parquet if path.suffix == ".parquet" else _lines)(path):
            where = f"{path}:{number}"
            try:
                found.append(QuestionRecord(where, *_read(row)))
            except BadRecord as fault:
                raise DataError(f"{where}: {fault}", where=where, allowed=FORM) from None
    except (OSError, EOFError, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        allowed = "a readable file of questions"
        raise DataError(f"{path}: {reason}; give {allowed}", where=str(path), allowed=allowed) from error
    if not found:
        allowed = "a file with at least one question"
        raise DataError(f"{path} is empty; give {allowed}", where=str(path), value=0, allowed=allowed)
    return found


def _read(row: Any) -> tuple[str | list[Message], Answer, dict[str, Any]]:
    if not isinstance(row, bytes):
        return read_row(_with_floats(row), _spelled(row))
    try:
        parsed = read_json(row, unique=True)
    except ValueError as error:
        raise BadRecord(f"not JSON that can be used ({error}); give {FORM}") from None
    return read_row(parsed, json.loads(row.decode("utf-8-sig"), parse_int=str, parse_float=str))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines end with a line feed and with nothing else: U+2028 may stand inside a text."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                yield number, line


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from parquet_rows(path)
    except ValueError as error:
        allowed = "a Parquet file"
        raise DataError(f"{error}; give {allowed}", where=str(path), value=str(error), allowed=allowed) from error


def _spelled(value: Any) -> Any:
    """Numbers of Parquet as answers. They have no spelling there, and a column of whole numbers with a gap becomes one
    of floats in pandas: a whole number is written as one."""
    if isinstance(value, dict):
        return {name: _spelled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE else value


def _with_floats(value: Any) -> Any:
    """Decimals of Parquet as the numbers that rewards read."""
    if isinstance(value, dict):
        return {name: _with_floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value
