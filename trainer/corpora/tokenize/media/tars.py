"""WebDataset tars: the members of one key, `KEY.jpg`, `KEY.txt`, `KEY.json`, are one document.

As in webdataset, a key ends at the first dot of a name, and its members follow each other; what follows the dot is
read without regard to case. The images and signals come first, in the order of the tar, then the text: `KEY.txt`, or a
field of `KEY.json`. A list of parts in that field decides the order itself; its paths are names of members, with or
without the key. Without a list, tables and WFDB files are signals only in a corpus with a rule for signals, and not
beside an image, where they usually describe it.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer.corpora.tar_files import files_of
from trainer.corpora.tokenize.media.parts import Medium, PartError, parts_of, text_of
from trainer.corpora.tokenize.units import bad
from trainer.data.media.images import SUFFIXES
from trainer.data.media.readers.read import FORMATS, read_recording
from trainer.data.media.readers.recording import Recording

BESIDE = ("csv", "tsv", "parquet", "dat", "hea")  # suffixes of signals, but also of files about something else
SIGNALS = {suffix.removeprefix("."): name for name, known in FORMATS.items() for suffix in known.suffixes}
Member = tuple[str, str, bytes, int]  # key, extension, content, bytes of the tar up to its end


def documents(
    path: str, field: str, origin: str | None, kinds: tuple[str, ...], unread: Counter[str]
) -> Iterator[tuple[int, str, str | None, Any]]:
    """(bytes read so far, place, origin or None, a list of texts and media or a PartError) of each key.

    kinds: those that the corpus has rules for. unread: counts the members that are not read, by suffix. Raises
    DataError for a tar that is truncated or not a tar.
    """
    for key, group in groupby(_members(path), key=lambda member: member[0]):
        members = [*group]
        try:
            found: Any = _document(key, members, field, origin, kinds, unread)
        except PartError as error:
            found = (None, error)
        yield members[-1][3], f"{path}, key {key}", *found


def _document(
    key: str, members: list[Member], field: str, origin: str | None, kinds: tuple[str, ...], unread: Counter[str]
) -> tuple[str | None, list[str | Medium]]:
    files: dict[str, bytes] = {}
    for _, extension, content, _ in members:
        if extension.lower() in files:
            raise PartError(f"it has .{extension} twice", extension, "one member of each name")
        files[extension.lower()] = content
    record = _record(files["json"]) if "json" in files else {}
    its_origin = None if origin is None else record.get(origin)
    if origin is not None and not isinstance(its_origin, str):
        raise PartError(f"its .json has no string {origin!r}; choose one with --origin", its_origin, "a string")
    inside = _Members(key, files)
    if isinstance(record.get(field), list):
        return its_origin, parts_of([record[field]], inside)
    has_image = any(_kind(extension) == "image" for extension in files)
    tables = BESIDE if has_image or "signal" not in kinds else ()
    named = [(kind, extension) for extension in files if (kind := _kind(extension, tables))]
    read = {"txt", "json", *(extension for _, extension in named)}
    unread.update(extension.rpartition(".")[2] for extension in files if extension not in read)
    media = parts_of([[{"type": kind, "path": extension} for kind, extension in named]], inside)
    if "txt" in files:
        try:
            text = files["txt"].decode()
        except UnicodeDecodeError as error:
            raise PartError(f"its .txt has invalid UTF-8 at byte {error.start + 1}", None, "UTF-8") from None
    elif isinstance(record.get(field), str):
        text = text_of(record[field])
    else:
        have = ", ".join(f".{extension}" for extension in files)
        text, allowed = f"it has {have}, but no .txt and no field {field!r} of a .json", f"a .txt or {field!r}"
        if any(
            extension.endswith((".txt", ".json")) for extension in files
        ):  # keys with dots, which webdataset joins too
            allowed = "names with one dot, between key and suffix"
            text += f"; a key ends at the first dot of a name: use {allowed}"
        raise PartError(text, have, allowed)
    return its_origin, [*media, *([text] if text else [])]


def _record(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise PartError(f"its .json is not JSON ({error})", str(error), "a JSON object") from None
    if not isinstance(record, dict):
        raise PartError("its .json is not an object", type(record).__name__, "a JSON object")
    return record


def _kind(extension: str, but: tuple[str, ...] = ()) -> str | None:
    """The kind of medium of a member, by the last part of its extension; None for those in `but`."""
    last = extension.rpartition(".")[2]
    return "image" if last in SUFFIXES else "signal" if last in SIGNALS and last not in but else None


@dataclass(frozen=True)
class _Members:
    """The files that paths in a document's parts name: members of its key."""

    key: str
    files: dict[str, bytes]  # by their extensions in lower case

    def image(self, path: str) -> bytes:
        return self.files[self._extension(path)]

    def signal(self, path: str, options: dict[str, Any]) -> Recording:
        extension = self._extension(path)
        known = SIGNALS.get(extension.rpartition(".")[2])
        return read_recording(self.files[extension], where=path, **{"format": known, **options})

    def _extension(self, path: str) -> str:
        base = self.key.rpartition("/")[2]
        for start in (f"{self.key}.", f"{base}.", ""):
            if path.startswith(start) and path[len(start) :].lower() in self.files:
                return path[len(start) :].lower()
        raise PartError(f"{path} is not a member of the key", path, tuple(f"{base}.{one}" for one in self.files))


def _members(path: str) -> Iterator[Member]:
    try:
        for member, content in files_of(Path(path)):
            folder, _, name = member.name.rpartition("/")
            base, dot, extension = name.partition(".")
            if dot and base:  # not macOS' ._files, nor what has no extension
                yield f"{folder}/{base}" if folder else base, extension, content, member.offset_data + member.size
    except tarfile.TarError as error:
        raise bad(path, f"is truncated or not a tar: {error}", value=str(error)) from error
