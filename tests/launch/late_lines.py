"""Mistakes that show only once a command has started: files that are not as they were written, or hold nonsense."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.launch.bad_lines import take_in_turn

DAMAGE = ("cut", "flipped", "gone")
SOURCES = ("records", "web", "code")
# Lines of a file of documents that are not a document with a text.
LINES = [
    '{"body": "iron"}',
    '{"text": 3}',
    "{",
    "iron",
    "[1]",
    '{"text": "a"} {"text": "b"}',
    "null",
    '{"text": "\udcff"}',
]


@dataclass(frozen=True)
class Late:
    """`octavo` + words, with one file of the place damaged, or a line added to it."""

    words: tuple[str, ...]
    file: str
    how: str

    def __str__(self) -> str:
        return f"{' '.join(self.words[:2])}: {self.file} {self.how}"


def late_cases(count: int, seed: int) -> list[Late]:
    """`count` different cases, of all kinds in turn."""
    draw = random.Random(seed)
    return take_in_turn([kind(draw) for kind in (_corpora, _documents, _checkpoints)], count)


def _corpora(draw: random.Random) -> Iterator[Late]:
    """`data check` hashes every file."""
    names = ["train-00000.bin", "train-00000.idx", "train-00000.blocks", "heldout-00000.bin", "heldout-00000.idx",
             "tokenizer.json", "manifest.json"]  # fmt: skip
    while True:
        file = f"{draw.choice(SOURCES)}/{draw.choice(names)}"
        yield Late(("data", "check", "small", "--config-dir", "."), file, draw.choice(DAMAGE))


def _documents(draw: random.Random) -> Iterator[Late]:
    words = ("tokenize", "out", "notes.jsonl", "--tokenizer", "tokenizer.json", "--domain", "general", "--workers", "1")
    while True:
        yield Late(words, "notes.jsonl", draw.choice(LINES))


def _checkpoints(draw: random.Random) -> Iterator[Late]:
    while True:
        command = draw.choice([("export", "run", "out"), ("inspect", "run", "--verify")])
        file = draw.choice(["__0_0.distcp", ".metadata", "manifest.json"])
        yield Late(command, f"run/checkpoints/step-1/{file}", draw.choice(DAMAGE))


def damage(file: Path, how: str) -> bytes:
    """Spoil a file, and return its content from before."""
    whole = file.read_bytes()
    if how == "cut":
        file.write_bytes(whole[:-3])
    elif how == "flipped":
        place = len(whole) // 2
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif how == "gone":
        file.unlink()
    else:
        lines = whole.splitlines(keepends=True)
        place = len(lines) // 2
        added = how.encode(errors="surrogateescape") + b"\n"
        file.write_bytes(b"".join([*lines[:place], added, *lines[place:]]))
    return whole
