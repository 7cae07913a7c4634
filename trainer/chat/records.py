"""Chats from files: JSON lines, JSON lists and Parquet, in the forms of `trainer.chat.forms`.

Every record becomes messages that chat templates take: content is text, the arguments of calls are objects, thinking is
`reasoning_content`. JSON is read line by line by Python's own parser, so a text such as "007" stays a text whatever the
other records hold. A fault names its file and line (of Parquet: its row).
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parallel.errors import one_of
from trainer.chat.errors import ChatError
from trainer.chat.forms import read_record
from trainer.chat.messages import BadRecord
from trainer.storage.json_text import read_json
from trainer.storage.parquet import parquet_rows

SUFFIXES = (".jsonl", ".json", ".parquet")
Kind = Literal["empty", "without an assistant's turn", "faulty"]


@dataclass(frozen=True)
class Chat:
    """One record. where: its file and line. values: names that the template reads for it alone."""

    where: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A record that cannot be trained on. text: what is wrong with it, for one that is faulty."""

    where: str
    kind: Kind
    text: str = ""


def chat_files(path: str, root: Path = Path()) -> list[Path]:
    """The files of a source: one, those of a directory, or those that a pattern names, in the order of their names.

    Raises ChatError where there is none, or one of another kind.
    """
    place = root / path
    if place.is_dir():
        found = sorted(file for file in place.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    elif place.is_file():
        found = [place]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(place), recursive=True)) if Path(name).is_file()]
    allowed = f"files that end in {one_of(SUFFIXES)}"
    if not found:
        raise ChatError(f"{place}: no file of chats is there; give {allowed}", where=str(place), allowed=allowed)
    for file in found:
        if file.suffix not in SUFFIXES:
            raise ChatError(f"{file} is not a file of chats; give {allowed}", where=str(file), value=file.suffix,
                            allowed=allowed)  # fmt: skip
    return found


def read_chats(file: Path) -> Iterator[Chat | LeftOut]:
    """The records of a file, in its order. Raises ChatError for a file that cannot be read."""
    rows = {".jsonl": _lines, ".json": _list, ".parquet": _parquet}[file.suffix]
    try:
        for number, row in rows(file):
            where = f"{file}:{number}"
            if isinstance(row, BadRecord):
                yield LeftOut(where, "faulty", str(row))
                continue
            try:
                messages, tools, values = read_record(row)
            except BadRecord as fault:
                yield LeftOut(where, "faulty", str(fault))
                continue
            if not any(message.get(key) for message in messages for key in ("content", "tool_calls")):
                yield LeftOut(where, "empty")
            elif not any(is_trained(message) for message in messages):
                yield LeftOut(where, "without an assistant's turn")
            else:
                yield Chat(where, messages, tools, values)
    except OSError as error:
        allowed = "a readable file"
        raise ChatError(f"{file} cannot be read: {error.strerror or error}", where=str(file), value=error.strerror,
                        allowed=allowed) from error  # fmt: skip


def is_trained(message: Mapping[str, Any]) -> bool:
    """Return True for an assistant's message that says something and has no weight of 0."""
    said = any(message.get(key) for key in ("content", "tool_calls", "reasoning_content"))
    return message["role"] == "assistant" and said and message.get("weight", 1) != 0


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parse(line)


def _list(file: Path) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list, each with the line that it starts on. A file with one object on each line is read as
    JSON lines, whatever its name."""
    text = file.read_bytes().decode("utf-8", errors="surrogateescape")
    at = _blank(text, 0)
    if text[at : at + 1] != "[":
        yield from _lines(file)
        return
    decoder = json.JSONDecoder()  # finds where an item ends
    line, counted, at = 1, 0, _blank(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield line, BadRecord(f"not JSON ({error})")
            return
        yield line, _parse(text[at:end])
        at = _blank(text, end)
        if text[at : at + 1] == ",":
            at = _blank(text, at + 1)
        elif text[at : at + 1] != "]":
            yield line, BadRecord("the list ends without its ]")
            return


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n\ufeff":
        at += 1
    return at


def _parquet(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        yield from parquet_rows(file)
    except ValueError as error:
        allowed = "a Parquet file"
        raise ChatError(f"{error}; give {allowed}", where=str(file), value=str(error), allowed=allowed) from error


def _parse(line: str | bytes) -> Any:
    try:
        return read_json(line)
    except ValueError as error:
        return BadRecord(f"not JSON ({error})")
