"""Small texts, a small tokenizer and the sources made of them, for tests."""

import json
import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

from trainer.corpora.packages import Document
from trainer.corpora.tokenize import write
from trainer.corpora.tokenize.jobs import start_jobs
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.shards.tokenizer import Tokenizer, train_bpe
from trainer.storage.workers import Task

PREFIXES = {
    "science": ["Read this as science.\n", "A text about science.\n", "Science:\n"],
    "general": ["Read on.\n", "A text.\n"],
}
VOCAB = 300
DEFAULTS: dict[str, Any] = {
    "name": "notes", "domain": "science", "group": "science", "prefixes": PREFIXES, "heldout_fraction": 0.2,
    "shard_tokens": 1500, "seed": 3, "workers": 0,
}  # fmt: skip


def texts(count: int = 120) -> list[str]:
    """All different, of 1 to 39 short words."""
    return [
        f"note {n}: " + " ".join(["an", "atom", "of", "iron"][: 1 + n % 4] * (1 + n % 10)) + ".\n" for n in range(count)
    ]


@cache
def tokenizer() -> Tokenizer:
    return train_bpe([*texts(), *(text for group in PREFIXES.values() for text in group)], VOCAB)


def save_tokenizer(directory: Path) -> Path:
    tokenizer().save(directory / "tokenizer.json")
    return directory / "tokenizer.json"


def write_jsonl(path: Path, some: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(some)))
    return path


def documents(some: list[str]) -> list[Document]:
    return [Document(f"file {n}", text) for n, text in enumerate(some)]


def make(directory: Path, inputs: Any, **changes: Any) -> Path:
    """A source `directory/source`, tokenized in this process by default."""
    out: Path = changes.pop("out", directory / "source")
    tokenize_source(inputs, save_tokenizer(directory), out, **{**DEFAULTS, **changes})
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def start_plain(work: Path) -> Task:
    """A worker with our own writer: Megatron's takes seconds to import, and test_tokenize.py compares them."""
    write.HAS_WHEEL = False
    return start_jobs(work)


def start_dying(work: Path) -> Task:
    return lambda job, report: os.kill(os.getpid(), signal.SIGKILL)
