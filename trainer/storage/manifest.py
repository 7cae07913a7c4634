"""The manifest of a checkpoint: what its directory must hold, byte for byte.

torch.distributed.checkpoint reads a shard with a flipped byte without complaint, so every file's size and SHA-256
stand in `manifest.json`, and the manifest carries a hash of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
OWN_HASH = "manifest_sha256"  # the key of its hash of itself
EXPANSION_FACT = "upcycle"  # the key of what an expansion says of itself


class Damaged(Exception):
    """A checkpoint is not what was written; the message names the file and what is wrong with it."""


def file_facts(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with open(path, "rb") as file:
        return {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_manifest(directory: Path, files: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write and sync `directory/manifest.json`. `files`: name -> `file_facts`; `facts`: JSON values of the caller."""
    body = {"format": FORMAT, **facts, "files": dict(sorted(files.items()))}
    body[OWN_HASH] = _body_hash(body)
    with open(directory / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(body, file, indent=1)  # no newline after it: a file cut short by a byte must not parse
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, once its own hash and format are right. Raises `Damaged`."""
    path = directory / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if OWN_HASH not in body:
            raise Damaged(f"{path} has lost its hash of itself ({OWN_HASH})")
        recorded = body.pop(OWN_HASH)
        files = body["files"]
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} cannot be read ({error})") from None
    if recorded != _body_hash(body):
        raise Damaged(f"{path} does not match its own hash")
    if body["format"] != FORMAT:
        raise Damaged(f"{path} has format {body['format']}, this version reads {FORMAT}")
    if not isinstance(files, dict):
        raise Damaged(f"{path} lists no files")
    return body


def size_fault(directory: Path, name: str, expected: dict[str, Any]) -> str | None:
    """What is wrong with one file of the manifest by its size alone, or None."""
    path = directory / name
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return None if size == expected["size"] else f"{path} has {size} bytes instead of {expected['size']}"


def only_as_written(directory: Path, fact: str) -> bool:
    """Whether a directory holds a manifest with the key `fact`, and otherwise files that it lists, of the sizes there,
    some of which may be gone: what its writer may remove, as nobody put anything else in it."""
    try:
        body = read_manifest(directory)
        found = {entry.name for entry in directory.iterdir()} - {MANIFEST}
    except (Damaged, OSError):
        return False
    files = body["files"]
    return (
        not directory.is_symlink()
        and fact in body
        and found <= files.keys()
        and not any(size_fault(directory, name, files[name]) for name in found)
    )


def remove_as_written(directory: Path, fact: str) -> None:
    """Remove a directory of which `only_as_written` holds, and no other. Raises OSError."""
    if not only_as_written(directory, fact):
        return
    for entry in [entry for entry in directory.iterdir() if entry.name != MANIFEST]:
        entry.unlink()
    (directory / MANIFEST).unlink()  # last: without it nobody would know what the others are
    directory.rmdir()


def verify_file(directory: Path, name: str, expected: dict[str, Any]) -> str | None:
    """What is wrong with one file of the manifest, or None."""
    if fault := size_fault(directory, name, expected):
        return fault
    path = directory / name
    try:
        if file_facts(path)["sha256"] != expected["sha256"]:
            return f"{path} has changed since it was written (SHA-256 differs)"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return None


def _body_hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
