"""Recognise the published weights that a run's adapters belong to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parallel.errors import UserError
from trainer.checkpoint.errors import CheckpointError
from trainer.storage.manifest import CHECKPOINT, CorruptError
from trainer.weights.hf_files import CONFIG, HuggingFaceError

BASE_FACT = "base"  # in the manifest of a checkpoint with adapters: `identify`
PIECES, PIECE = 16, 1 << 16  # of each file: evenly spread, of this many bytes


def identify(directory: Path) -> dict[str, str]:
    """The path of a Hugging Face directory, and hashes by which to recognise its weights.

    One is of config.json and, of each safetensors file, the name, the size, the header and pieces of the rest: reading
    all of a terabyte at every start would take longer than the start. Where the directory has a manifest of ours, its
    hash is the other: it covers every byte that was written, but none that was changed since. Raises HuggingFaceError
    where a file cannot be read.
    """
    found = {"path": str(directory.absolute()), "sampled": _sample(directory)}
    try:
        return found | {"manifest": CHECKPOINT.read(directory)[CHECKPOINT.hash_key]}
    except CorruptError:
        return found  # without one, or with another program's


def _sample(directory: Path) -> str:
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
    return hasher.hexdigest()


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
    """The hashes that were saved and are not those of `found`; None where they are the same weights, wherever they are.

    Hashes that only one of them has are not compared: a copy may lack the manifest, which older checkpoints have alone.
    """
    before = {kind: value for kind, value in (saved or {}).items() if kind != "path"}
    common = before.keys() & found.keys()
    if not common:
        return "no hash"
    return ", ".join(f"{kind} {before[kind][:12]}" for kind in sorted(common) if before[kind] != found[kind]) or None


def base_path(checkpoint: Path, base: Mapping[str, str], elsewhere: str | None) -> Path:
    """The directory of the weights that `identify` found `base` for: at its path, or else at `elsewhere`. Raises
    CheckpointError where they are in neither."""
    first = Path(base.get("path", ""))
    if elsewhere is not None and not _is_base(first, base) and _is_base(Path(elsewhere), base):
        return Path(elsewhere)
    try:
        found = identify(first)
    except UserError as error:
        raise gone(checkpoint, first, error) from error
    if (other := differing(base, found)) is not None:
        text = f"{checkpoint} holds adapters, and {first} is not the base they were trained on ({other})"
        allowed = _remedy(first)
        raise CheckpointError(f"{text}; restore {allowed}", where=str(first), value=found, allowed=allowed)
    return first


def gone(checkpoint: Path, path: Path, error: UserError) -> CheckpointError:
    """The error for a base that cannot be read."""
    allowed = _remedy(path)
    text = f"{checkpoint} holds adapters, and their base cannot be read: {error}; restore {allowed}"
    return CheckpointError(text, where=str(path), allowed=allowed)


def _remedy(path: Path) -> str:
    return f"the directory that the run's adapters belong to, at {path} or at checkpoint.init_from of its config.yaml"


def _is_base(directory: Path, base: Mapping[str, str]) -> bool:
    try:
        return directory.is_dir() and differing(base, identify(directory)) is None
    except UserError:
        return False
