"""WebDataset tars: the members of one key, `KEY.jpg`, `KEY.txt`, `KEY.json`, are one document.

As in webdataset, a key ends at the first dot of a name, and its members follow each other. The images come first, in
the order of the tar, then the text: `KEY.txt`, or a field of `KEY.json`. A list of parts in that field decides the
order itself; its paths are names of members, with or without the key.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from trainer.corpora.tokenize.media.parts import Medium, PartError, parts_of, text_of
from trainer.corpora.tokenize.units import bad

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
Member = tuple[str, str, bytes, int]  # key, extension, content, bytes of the tar up to its end


def documents(path: str, field: str, origin: str | None) -> Iterator[tuple[int, str, str | None, Any]]:
    """(bytes read so far, place, origin or None, a list of texts and media or a PartError) of each key.

    Raises DataError for a tar that is truncated or not a tar.
    """
    for key, group in groupby(_members(path), key=lambda member: member[0]):
        members = [*group]
        try:
            found: Any = _document(key, members, field, origin)
        except PartError as error:
            found = (None, error)
        yield members[-1][3], f"{path}, key {key}", *found


def _document(key: str, members: list[Member], field: str, origin: str | None) -> tuple[str | None, list[str | Medium]]:
    files = {extension: content for _, extension, content, _ in members}
    record = _record(files["json"]) if "json" in files else {}
    its_origin = None if origin is None else record.get(origin)
    if origin is not None and not isinstance(its_origin, str):
        raise PartError(f"its .json has no string {origin!r}; choose one with --origin", its_origin, "a string")
    if isinstance(record.get(field), list):
        return its_origin, parts_of(record[field], lambda name: _member(name, key, files))
    media: list[str | Medium] = [
        Medium("image", number, content)
        for number, (extension, content) in enumerate(files.items(), 1)
        if extension.rpartition(".")[2].lower() in IMAGES
    ]
    if "txt" in files:
        try:
            text = files["txt"].decode()
        except UnicodeDecodeError as error:
            raise PartError(f"its .txt has invalid UTF-8 at byte {error.start + 1}", None, "UTF-8") from None
    elif isinstance(record.get(field), str):
        text = text_of(record[field])
    else:
        have = ", ".join(f".{extension}" for extension in files)
        raise PartError(f"it has {have}, but no .txt and no field {field!r} of a .json", have, f"a .txt or {field!r}")
    return its_origin, [*media, *([text] if text else [])]


def _record(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as error:
        raise PartError(f"its .json is not JSON ({error})", str(error), "a JSON object") from None
    if not isinstance(record, dict):
        raise PartError("its .json is not an object", type(record).__name__, "a JSON object")
    return record


def _member(name: str, key: str, files: dict[str, bytes]) -> bytes:
    base = key.rpartition("/")[2]
    for start in (f"{key}.", f"{base}.", ""):
        if name.startswith(start) and name[len(start) :] in files:
            return files[name[len(start) :]]
    have = tuple(f"{base}.{extension}" for extension in files)
    raise PartError(f"{name} is not a member of the key", name, have)


def _members(path: str) -> Iterator[Member]:
    try:
        with tarfile.open(path, "r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                base, dot, extension = name.partition(".")
                if not dot or not base:  # macOS' ._files, and what has no extension
                    continue
                file = tar.extractfile(member)
                assert file is not None
                key = f"{folder}/{base}" if folder else base
                yield key, extension, file.read(), member.offset_data + member.size
            _check_end(Path(path), end)
    except tarfile.TarError as error:
        raise bad(path, f"is truncated or not a tar: {error}", value=str(error)) from error


def _check_end(path: Path, at: int) -> None:
    """tarfile takes a tar that ends between two members for a whole one."""
    with path.open("rb") as file:
        file.seek(at)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise bad(path, "is truncated: it has no end of the archive", value=at)
