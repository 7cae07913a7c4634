"""Recognise the published weights that a run's adapters belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.storage.manifest import CHECKPOINT, MANIFEST, CorruptError
from trainer.weights.hf_files import CONFIG, HuggingFaceError

BASE_FACT = "base"  # in the manifest of a checkpoint with adapters: `identify`
PIECES, PIECE = 16, 1 << 16  # of each file, where there is no manifest: evenly spread, of this many bytes


def identify(directory: Path) -> dict[str, str]:
    """The path of a Hugging Face directory, and a hash by which to recognise its weights.

    The hash of its manifest where it has one of ours, which covers every byte; otherwise that of config.json and, of
    each safetensors file, the name, the size, the header and pieces of the rest: reading all of a terabyte at every
    start would take longer than the start. Raises HuggingFaceError where a file cannot be read.
    """
    found = {"path": str(directory.absolute())}
    if (directory / MANIFEST).is_file():
        try:
            return found | {"manifest": CHECKPOINT.read(directory)[CHECKPOINT.hash_key]}
        except CorruptError:
            pass  # another program's
    try:
        hasher = hashlib.sha256((directory / CONFIG).read_bytes())
        for file in sorted(directory.glob("*.safetensors")):
            hasher.update(json.dumps([file.name, file.stat().st_size]).encode())
            for piece in _pieces(file):
                hasher.update(piece)
    except OSError as error:
        raise HuggingFaceError(
            f"{error.filename}: {error.strerror}",
            where=str(error.filename),
            value=error.strerror,
            allowed="a readable file",
        ) from error
    return found | {"sampled": hasher.hexdigest()}


def _pieces(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        size = os.fstat(stream.fileno()).st_size
        yield stream.read(min(header, size))
        first, last = stream.tell(), max(stream.tell(), size - PIECE)
        for number in range(PIECES):
            stream.seek(first + (last - first) * number // (PIECES - 1))
            yield stream.read(PIECE)


def differing(saved: Any, found: dict[str, str]) -> str | None:
    """The hash that was saved and is not that of `found`; None where they are the same weights, wherever they are."""
    before, now = ({kind: value for kind, value in of.items() if kind != "path"} for of in (saved or {}, found))
    return None if before == now else ", ".join(f"{kind} {value[:12]}" for kind, value in before.items()) or "no hash"
