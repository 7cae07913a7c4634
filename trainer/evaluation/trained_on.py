"""Benchmark files that the evaluated run was trained on, as far as the run's directory says.

A run on chats names its files: one is compared by its content. A run on a mixture has its corpora's tokens: the first
tokens of texts are looked for there, where the corpora are small enough to be read whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.chat.errors import ChatError
from trainer.chat.records import chat_files
from trainer.config.run_files import read_run
from trainer.engine.load import Source
from trainer.evaluation.files import SUFFIXES
from trainer.evaluation.perplexity import Passage
from trainer.storage.json_text import read_json
from trainer.weights.opened import OpenedCheckpoint

TEXTS = 20  # of each domain that are looked for
TOKENS = 32  # of a text: its first ones; texts of fewer than half as many prove nothing
MOST_BYTES = 256 << 20  # of shards


def trained_on(source: Source, directories: Iterable[Path], passages: Sequence[Passage]) -> Iterator[str]:
    """Sentences about files in `directories` and texts of `passages` that the run trained on; none for a directory that
    is not a run's. Files of the run that are gone or damaged are passed over: they decide nothing here."""
    if not isinstance(source.opened, OpenedCheckpoint):
        return
    tree, _ = read_run(source.opened.run_directory)
    data = tree.get("data") or {}
    yield from files_trained_on(data, directories)
    texts = [passage for passage in passages if passage.text is not None]
    if data.get("name") == "mixture" and texts:
        yield from _texts(source, data, texts)


def files_trained_on(data: Mapping[str, Any], directories: Iterable[Path]) -> Iterator[str]:
    """Sentences about files in `directories` that have the content of one of the run's chats. data: as its keys."""
    read = sorted(file for one in directories for file in one.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    sizes = {file.stat().st_size for file in read}
    known: dict[tuple[int, str], str] = {}
    for name, chats in (data.get("chats") or {}).items():
        try:
            files = chat_files(chats["path"], Path(data.get("root") or "."))
        except (ChatError, OSError):
            continue
        known |= {_identity(file): name for file in files if file.stat().st_size in sizes}
    for file in read if known else ():
        if (name := known.get(_identity(file), "")) != "":
            yield f"the run was trained on {file} (data.chats.{name}): its score says nothing about other questions"


def _identity(file: Path) -> tuple[int, str]:
    with file.open("rb") as content:
        return file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()


def _texts(source: Source, data: Mapping[str, Any], passages: Sequence[Passage]) -> Iterator[str]:
    by_domain: dict[str, list[list[int]]] = {}
    for passage in passages:
        starts = by_domain.setdefault(passage.domain, [])
        if len(starts) < TEXTS:
            ids = source.prompt(passage.text or "", opening=False)[:TOKENS]
            if len(ids) >= TOKENS // 2:
                starts.append(ids)
    found: dict[tuple[str, str], set[int]] = {}
    for name, dtype, tokens in _shards(data):
        for domain, starts in by_domain.items():
            hits = {place for place, ids in enumerate(starts) if np.array(ids, dtype).tobytes() in tokens}
            found.setdefault((domain, name), set()).update(hits)
    for (domain, name), hits in sorted(found.items()):
        if hits:
            count, of = len(hits), len(by_domain[domain])
            yield f"the run was trained on {count} of the first {of} texts of {domain} (data.sources.{name})"


def _shards(data: Mapping[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    """(source, type of a token, tokens) of the shards that are trained on."""
    read = 0
    for name, one in (data.get("sources") or {}).items():
        directory = Path(data.get("root") or ".") / one["path"]
        try:
            manifest = read_json((directory / "manifest.json").read_bytes())
            for shard in manifest["shards"]:
                tokens = directory / f"{shard['stem']}.bin"
                if (read := read + tokens.stat().st_size) > MOST_BYTES:
                    return
                yield name, manifest["dtype"], tokens.read_bytes()
        except (OSError, ValueError, LookupError, TypeError):
            continue
