"""Chats tokenized into the cache, once for all runs with the same files, template and tokenizer.

    <cache>/chats/<key>/manifest.json   counts, and hashes of what follows
        tokens.bin     ids of all examples, int32
        trained.bin    one byte for each token, 1 where it is a label
        examples.bin   [N, 4] int64: first token, tokens, record, trained tokens
        records.bin    [R, 4] int64: source, held out, file, line

A chat is one example or several (`trainer.chat.masks`); all examples of one are in one split.

N examples · R records that are trained on
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from parallel.errors import Fault
from trainer.chat.errors import ChatError
from trainer.chat.masks import Example, examples
from trainer.chat.records import Chat, LeftOut, chat_files, read_chats
from trainer.data.chats.tokens import ChatTokenizer, Tokens
from trainer.data.errors import DataError
from trainer.data.hashing import bytes_key
from trainer.storage.atomic import atomic_directory, remove_unfinished
from trainer.storage.lock import FileLock
from trainer.storage.manifest import CorruptError, Manifest
from trainer.storage.progress import OnProgress, Progress

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

FORMAT = 2  # raise it with any change of the output
CHATS = Manifest(version=FORMAT, hash_key="checksum", size_key="bytes", compact=True, ascii=False)
AT_ONCE = 256  # examples that are tokenized together
NAMED = 3  # records of each kind that are named
FAULTS = 20  # faulty records that one error lists
EVERY = 20_000  # records between reports
FILES = ("tokens.bin", "trained.bin", "examples.bin", "records.bin")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """The contents of a directory of the cache.

    sources: their names; files: of all sources. facts: counts of records by source and kind, the first few of each
    kind, tokens, trained and straddling tokens, and `ends`: the ids that end turns, with their numbers.
    """

    directory: Path
    key: str
    sources: list[str]
    files: list[str]
    facts: dict[str, Any]
    tokens: npt.NDArray[np.int32]
    trained: npt.NDArray[np.uint8]
    examples: Ints
    records: Ints

    def where(self, example: int) -> str:
        """The file and line of an example."""
        _, _, file, line = self.records[self.examples[example, 2]].tolist()
        return f"{self.files[file]}:{line}"

    def left_out(self) -> Iterator[str]:
        """A line for each kind of record of each source that is not trained on, with the first few; and for thinking
        that the template does not write."""
        for source in self.sources:
            for kind, count in self.facts["left_out"].get(source, {}).items():
                first = ", ".join(self.facts["named"][source][kind])
                more = ", ..." if count > NAMED else ""
                yield f"data.chats.{source}: {count:,} record(s) left out, {kind}: {first}{more}"
            if turns := self.facts["silent"].get(source):
                yield f"data.chats.{source}: the template leaves out the thinking of {turns:,} turn(s)"


def prepare(data: DataConfig, tokenizer: ChatTokenizer, progress: OnProgress) -> Prepared:
    """The chats of `data`, tokenized first where they are not in the cache. Safe to call from several processes.

    Raises DataError and ChatError: for files that cannot be read, for faulty records under `data.on_fault=fail`, and
    for a source without a record to train on.
    """
    files = _files(data)
    key = _key(data, files, tokenizer)
    cache = Path(data.cache_dir) / "chats"
    directory = cache / key[:16]
    try:
        if (found := _open(directory, data, files, key)) is not None:
            return found
        with FileLock(directory.with_name(f"{directory.name}.lock"), wait=None):
            if (found := _open(directory, data, files, key)) is None:
                shutil.rmtree(directory, ignore_errors=True)
                remove_unfinished(directory)
                with atomic_directory(directory) as work:
                    _Writer(data, tokenizer, work, progress).write(files)
                found = _open(directory, data, files, key)
    except OSError as error:
        path, allowed = error.filename or directory, "a directory that can be written"
        text = f"{path}: {error.strerror or error}; use {allowed} as data.cache_dir"
        raise DataError(text, where="data.cache_dir", value=data.cache_dir, allowed=allowed) from error
    assert found is not None
    return found


def _files(data: DataConfig) -> list[tuple[str, bool, Path]]:
    """(source, held out, file) in the order in which they are read. Raises ChatError that names the key."""
    found = []
    for name, source in data.chats.items():
        for key, path in (("path", source.path), ("heldout", source.heldout)):
            if path:
                found += [(name, key == "heldout", file) for file in _of_key(f"data.chats.{name}.{key}", path, data)]
    return found


def _of_key(key: str, path: str, data: DataConfig) -> list[Path]:
    try:
        return chat_files(path, Path(data.root))
    except ChatError as error:
        raise ChatError(f"{key}={path}: {error}", where=key, value=path, allowed=error.allowed) from error


def _key(data: DataConfig, files: Sequence[tuple[str, bool, Path]], tokenizer: ChatTokenizer) -> str:
    parts: list[Any] = [FORMAT, tokenizer.key, data.chat_date, data.holdout_fraction]
    for name, heldout, file in files:
        try:
            with file.open("rb") as content:
                parts.append([name, heldout, file.suffix, hashlib.file_digest(content, "sha256").hexdigest()])
        except OSError as error:
            allowed = "a readable file"
            text = f"data.chats.{name}: {file} cannot be read: {error.strerror or error}"
            raise ChatError(text, where=str(file), value=error.strerror, allowed=allowed) from error
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open(directory: Path, data: DataConfig, files: Sequence[tuple[str, bool, Path]], key: str) -> Prepared | None:
    try:
        facts = CHATS.read(directory)
    except CorruptError:
        return None
    listed = facts["files"]
    check = CHATS.check_size if data.verify == "off" else CHATS.check_file
    if facts["key"] != key or any(check(directory, name, listed[name]) for name in FILES):
        return None
    if data.on_fault == "fail" and any("faulty" in kinds for kinds in facts["left_out"].values()):
        return None  # made under data.on_fault=skip: read again, for the faults
    maps = [_map(directory / name, kind) for name, kind in zip(FILES, ("<i4", "u1", "<i8", "<i8"), strict=True)]
    return Prepared(
        directory, key, list(data.chats), [str(file) for _, _, file in files], facts,
        maps[0], maps[1], maps[2].reshape(-1, 4), maps[3].reshape(-1, 4),
    )  # fmt: skip


def _map(path: Path, kind: str) -> Any:
    return np.memmap(path, kind, mode="r") if path.stat().st_size else np.empty(0, kind)


@dataclass
class _Writer:
    """Reads all records, and writes the examples of those that are trained on."""

    data: DataConfig
    tokenizer: ChatTokenizer
    work: Path
    progress: OnProgress
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)  # of examples.bin
    records: list[list[int]] = field(default_factory=list)  # of records.bin
    hashes: list[int] = field(default_factory=list)  # of the records, for the choice of those that are held out
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    named: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    ends: Counter[int] = field(default_factory=Counter)
    read: int = 0
    written: int = 0
    straddling: int = 0
    silent: Counter[str] = field(default_factory=Counter)  # turns whose thinking the template leaves out, by source

    def write(self, files: Sequence[tuple[str, bool, Path]]) -> None:
        names = list(self.data.chats)
        with (self.work / "tokens.bin").open("wb") as tokens, (self.work / "trained.bin").open("wb") as trained:
            waiting: list[tuple[int, Example]] = []
            for number, (name, heldout, file) in enumerate(files):
                for chat in read_chats(file):
                    self._report(name)
                    record = [names.index(name), int(heldout), number, int(chat.where.rpartition(":")[2])]
                    waiting += self._examples(name, chat, record)
                    if len(waiting) >= AT_ONCE:
                        self._put(waiting, tokens, trained)
                        waiting = []
            self._put(waiting, tokens, trained)
        if self.faults:
            raise ChatError(self.faults)
        self._hold_out(names, [str(file) for _, _, file in files])
        np.array(self.rows, "<i8").reshape(-1, 4).tofile(self.work / "examples.bin")
        np.array(self.records, "<i8").reshape(-1, 4).tofile(self.work / "records.bin")
        key = _key(self.data, files, self.tokenizer)  # of what was read, should a file have changed meanwhile
        facts = {
            "key": key, "read": self.read, "records": len(self.records), "examples": len(self.rows),
            "tokens": sum(row[1] for row in self.rows), "trained": sum(row[3] for row in self.rows),
            "straddling": self.straddling, "left_out": self.left_out, "named": self.named,
            "ends": self.ends.most_common(), "silent": self.silent,
        }  # fmt: skip
        CHATS.write(self.work, facts, {name: CHATS.file_facts(self.work / name) for name in FILES})

    def _report(self, name: str) -> None:
        self.read += 1
        if self.read % EVERY == 0:
            self.progress(Progress("tokenizing chats", detail=f"{self.read:,} records, in data.chats.{name}"))

    def _examples(self, name: str, chat: Chat | LeftOut, record: list[int]) -> list[tuple[int, Example]]:
        if isinstance(chat, LeftOut):
            self._leave_out(name, chat.where, chat.kind, chat.text)
            return []
        try:
            found = examples(self.tokenizer.template, chat, self.tokenizer.control, self.tokenizer.values)
        except ChatError as error:
            if error.where == "data.chat_date":
                raise
            self._leave_out(name, chat.where, "faulty", str(error))
            return []
        if not found:
            self._leave_out(name, chat.where, "without an assistant's turn")
            return []
        self.silent[name] += sum(one.silent for one in found)
        self.records.append(record)
        self.hashes.append(bytes_key("\0".join(one.text for one in found).encode()))
        return [(len(self.records) - 1, one) for one in found]

    def _leave_out(self, name: str, where: str, kind: str, text: str = "") -> None:
        self.left_out.setdefault(name, Counter())[kind] += 1
        named = self.named.setdefault(name, {}).setdefault(kind, [])
        if len(named) < NAMED:
            named.append(where)
        if kind == "faulty" and self.data.on_fault == "fail" and len(self.faults) < FAULTS:
            remedy = "mend the record, or set data.on_fault=skip to leave it out"
            at = "" if text.startswith(where) else f"{where}: "
            self.faults.append(Fault(f"{at}{text}; {remedy}", where, text, remedy))

    def _put(self, waiting: Sequence[tuple[int, Example]], tokens: BinaryIO, trained: BinaryIO) -> None:
        if not waiting:
            return
        encoded: list[Tokens] = self.tokenizer.encode([example for _, example in waiting])
        for (record, _), one in zip(waiting, encoded, strict=True):
            count = int(one.trained[1:].sum())  # the first token of a text is not a label
            self.rows.append((self.written, len(one.ids), record, count))
            tokens.write(one.ids.astype("<i4").tobytes())
            trained.write(one.trained.astype("u1").tobytes())
            self.written += len(one.ids)
            self.straddling += one.straddling
            last = np.flatnonzero(one.trained[:-1] & ~one.trained[1:])
            self.ends.update(one.ids[last].tolist())
            if one.trained.size and one.trained[-1]:
                self.ends[int(one.ids[-1])] += 1

    def _hold_out(self, names: Sequence[str], files: Sequence[str]) -> None:
        """Records of each source that are never trained on: those with the smallest hashes. Those that equal one of
        them, of whatever source, are left out. Raises DataError for a source with nothing to train on."""
        of_source = np.array([record[0] for record in self.records], np.int64)
        for number, name in enumerate(names):
            mine = np.flatnonzero(of_source == number)
            if not self.data.chats[name].heldout and len(mine) > 1:
                wanted = max(1, round(self.data.holdout_fraction * len(mine)))
                keys = sorted(self.hashes[record] for record in mine)
                limit = keys[wanted - 1] if keys[wanted - 1] < keys[-1] else -1
                for record in mine.tolist():
                    self.records[record][1] = int(self.hashes[record] <= limit)
        self._drop_heldout(names, files)
        trained = {record[0] for record in self.records if not record[1]}
        for number, name in enumerate(names):
            if number not in trained:
                kinds = self.left_out.get(name, Counter())
                why = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "the files have none"
                allowed = "files with chats that have an assistant's turn"
                text = f"data.chats.{name} has no record to train on: {why}; use {allowed}"
                raise DataError(text, where=f"data.chats.{name}", value=dict(kinds), allowed=allowed)

    def _drop_heldout(self, names: Sequence[str], files: Sequence[str]) -> None:
        """Leave out the records to train on that a held-out one equals."""
        heldout = {one for one, record in zip(self.hashes, self.records, strict=True) if record[1]}
        numbers: dict[int, int] = {}  # of the records that stay: the old one -> the new one
        for old, (one, (source, held, file, line)) in enumerate(zip(self.hashes, self.records, strict=True)):
            if one in heldout and not held:
                self._leave_out(names[source], f"{files[file]}:{line}", "equal to one that is held out")
            else:
                numbers[old] = len(numbers)
        self.records = [self.records[old] for old in numbers]
        self.rows = [(first, length, numbers[r], count) for first, length, r, count in self.rows if r in numbers]
