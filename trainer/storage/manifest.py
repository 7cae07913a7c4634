"""Manifests: what a directory must hold, byte for byte.

Most readers take a file with a flipped byte without complaint, so a directory's `manifest.json` lists the size and
SHA-256 of each file, and carries a hash of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.storage.atomic import sync

MANIFEST = "manifest.json"
Facts = dict[str, Any]  # JSON values


class CorruptError(Exception):
    """A file is not what was written. `missing`: it does not exist. `value`: its size, hash or format, or why it cannot
    be read; `allowed`: the size, hash or format that it should have."""

    def __init__(
        self, path: Path, problem: str, *, missing: bool = False, value: Any = None, allowed: Any = None
    ) -> None:
        super().__init__(path, problem)
        self.path, self.problem, self.missing = path, problem, missing
        self.value, self.allowed = value, allowed

    def __str__(self) -> str:
        return f"{self.path} {self.problem}"


@dataclass(frozen=True)
class Manifest:
    """The spelling of one kind of manifest: a JSON object with `format`, the caller's facts and a hash of itself.

    version: the value of `format`. hash_key: the key of the hash of all other keys. size_key: the key of a file's size,
    beside `sha256`. compact: hash the JSON without spaces. ascii: escape all other characters in the file.
    """

    version: int
    hash_key: str
    size_key: str
    compact: bool
    ascii: bool

    def file_facts(self, path: Path) -> Facts:
        """Size in bytes and SHA-256 of a file. Raises OSError."""
        with open(path, "rb") as file:
            return {
                self.size_key: os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }

    def write(self, directory: Path, facts: Mapping[str, Any], files: Mapping[str, Facts] | None = None) -> Facts:
        """Write `manifest.json` to the disk, and return it. `files`: name -> `file_facts`. Raises OSError."""
        body: Facts = {"format": self.version, **facts}
        if files is not None:
            body["files"] = dict(sorted(files.items()))
        body[self.hash_key] = self._hash(body)
        with open(directory / MANIFEST, "w", encoding="utf-8") as file:
            # No newline at the end: a file cut short by a byte must not parse.
            json.dump(body, file, indent=1, ensure_ascii=self.ascii)
        sync(directory / MANIFEST)
        return body

    def read(self, directory: Path) -> Facts:
        """The manifest, its own hash included, once that and its format are right. Raises CorruptError."""
        path = directory / MANIFEST
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(body, dict):
                raise TypeError("not a JSON object")
            if self.hash_key not in body:
                raise CorruptError(path, f"has no hash of itself ({self.hash_key})", allowed=self.hash_key)
            recorded = body.pop(self.hash_key)
            version = body["format"]
        except FileNotFoundError:
            raise CorruptError(path, "is missing", missing=True) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(path, f"cannot be read ({error})", value=str(error)) from None
        if recorded != (own := self._hash(body)):
            raise CorruptError(path, "does not match its own hash", value=own, allowed=recorded)
        if version != self.version:
            problem = f"has format {version}; this version reads {self.version}"
            raise CorruptError(path, problem, value=version, allowed=self.version)
        if not isinstance(body.get("files", {}), dict):
            raise CorruptError(path, "lists no files")
        return {**body, self.hash_key: recorded}

    def check_size(self, directory: Path, name: str, expected: Mapping[str, Any]) -> CorruptError | None:
        """The fault of one file by its size alone; None without one."""
        path = directory / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return CorruptError(path, "is missing", missing=True)
        except OSError as error:
            return _unreadable(path, error)
        wanted = expected[self.size_key]
        if size == wanted:
            return None
        return CorruptError(path, f"has {size} bytes instead of {wanted}", value=size, allowed=wanted)

    def check_file(self, directory: Path, name: str, expected: Mapping[str, Any]) -> CorruptError | None:
        """The fault of one file by its size and content; None without one."""
        if fault := self.check_size(directory, name, expected):
            return fault
        try:
            found = self.file_facts(directory / name)["sha256"]
        except OSError as error:
            return _unreadable(directory / name, error)
        if found == expected["sha256"]:
            return None
        problem = "has changed since it was written (SHA-256 differs)"
        return CorruptError(directory / name, problem, value=found, allowed=expected["sha256"])

    def holds_only_its_files(self, directory: Path, fact: str) -> bool:
        """Return True if a directory has a manifest with the key `fact` and otherwise only files that it lists, of
        those sizes, some of them perhaps missing: its writer may remove it, as nothing was added by others."""
        try:
            body = self.read(directory)
            found = _files_in(directory) - {MANIFEST}
        except (CorruptError, OSError):
            return False
        files = body["files"]
        return (
            not directory.is_symlink()
            and fact in body
            and found <= files.keys()
            and not any(self.check_size(directory, name, files[name]) for name in found)
        )

    def remove_directory(self, directory: Path, fact: str) -> None:
        """Remove a directory if it `holds_only_its_files`. Raises OSError."""
        if not self.holds_only_its_files(directory, fact):
            return
        for name in sorted(_files_in(directory) - {MANIFEST}):
            (directory / name).unlink()
        for folder in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()  # what is inside a folder sorts behind it
        (directory / MANIFEST).unlink()  # last: without it nothing shows what the other files are
        directory.rmdir()

    def _hash(self, body: Mapping[str, Any]) -> str:
        return digest(body, compact=self.compact)


def _unreadable(path: Path, error: OSError) -> CorruptError:
    reason = error.strerror or str(error)
    return CorruptError(path, f"cannot be read ({reason})", value=reason)


def _files_in(directory: Path, prefix: str = "") -> set[str]:
    """Files by their paths in a directory. A link counts as a file, a directory without files by its name."""
    found: set[str] = set()
    for entry in directory.iterdir():
        inside = entry.is_dir() and not entry.is_symlink()
        found |= (_files_in(entry, f"{prefix}{entry.name}/") if inside else set()) or {prefix + entry.name}
    return found


# Of checkpoints, and of directories with a model.
CHECKPOINT = Manifest(version=1, hash_key="manifest_sha256", size_key="size", compact=False, ascii=True)


def digest(value: Any, *, compact: bool = False) -> str:
    """SHA-256 (hex) of a JSON value, alike for any order of its keys."""
    separators = (",", ":") if compact else None
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=separators).encode()).hexdigest()
