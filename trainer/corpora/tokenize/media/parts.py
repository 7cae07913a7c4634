"""The parts of a document, as rows of JSONL, Parquet and Arrow spell them, and the bytes of its media.

A document is a string, or a list of parts in the form that chat datasets use:

    {"type": "text", "text": "..."}
    {"type": "image", "image": "figure.png"}
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}

An image may also be under "path", "url" or "bytes", or an object with one of these, as `datasets` stores it. A path is
relative to the file with the row, or to a directory of choice. `file://` and `data:` URLs are read; others would
have to be downloaded first, and are refused. Bytes are base64 in JSON.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from parallel.errors import one_of

TYPES = ("text", "image", "image_url")
REFUSED = ("video", "video_url")
KEYS = {"image": ("path", "bytes", "image", "url"), "image_url": ("image_url",)}

OpenPath = Callable[[str], bytes]  # the bytes of a path in a part. Raises OSError


class PartError(ValueError):
    """A part that cannot be used. where: its number in the document, from 1, and its key."""

    def __init__(self, text: str, value: Any = None, allowed: Any = None) -> None:
        super().__init__(text)
        self.value, self.allowed = value, allowed


@dataclass(frozen=True)
class Medium:
    """An image of a document, as its row has it. number: of the part, from 1."""

    kind: str
    number: int
    data: bytes


def parts_of(document: Any, open_path: OpenPath) -> list[str | Medium]:
    """Texts and media in turn; neighbouring texts are one. Raises PartError."""
    if isinstance(document, str):
        return [document] if document else []
    if not isinstance(document, Sequence):
        raise PartError("it is neither a string nor a list of parts", type(document).__name__, "a list of parts")
    found: list[str | Medium] = []
    for number, part in enumerate(document, 1):
        try:
            one = _part(part, number, open_path)
        except PartError as error:
            raise PartError(f"part {number}: {error}", error.value, error.allowed) from error
        if isinstance(one, str) and found and isinstance(found[-1], str):
            found[-1] += one
        elif one:
            found.append(one)
    return found


def _part(part: Any, number: int, open_path: OpenPath) -> str | Medium:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise PartError("it is not an object with a type", type(part).__name__, TYPES)
    kind = part.get("type")
    if kind in REFUSED:
        raise PartError("videos are not supported; leave them out, or give frames as images", kind, TYPES)
    if kind not in TYPES:
        raise PartError(f"its type is {kind!r}; use {one_of(TYPES)}", kind, TYPES)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise PartError("it has no text", part.get("text"), "a string under 'text'")
        return text_of(part["text"])
    given = [key for key in KEYS[kind] if part.get(key) is not None]
    if len(given) != 1:
        what = f"it has {' and '.join(given)}" if given else "it has no bytes and no path"
        raise PartError(f"{what}; use one of {one_of(KEYS[kind])}", tuple(given), KEYS[kind])
    return Medium(kind.removesuffix("_url"), number, _bytes(given[0], part[given[0]], open_path))


def text_of(text: str) -> str:
    """The text, if it can be encoded. Raises PartError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PartError(f"its text has \\u{ord(text[error.start]):04x}, half of a surrogate pair") from None
    return text


def _bytes(key: str, value: Any, open_path: OpenPath) -> bytes:
    if isinstance(value, Mapping):  # {"url"} of chat formats, or what datasets keeps of an image
        inside = [name for name in ("bytes", "url", "path") if value.get(name) is not None]
        if not inside:
            raise PartError(f"{key} has no bytes and no path", tuple(value), ("bytes", "url", "path"))
        return _bytes(inside[0], value[inside[0]], open_path)
    if isinstance(value, bytes | bytearray | memoryview):
        return _not_empty(bytes(value), key)
    if not isinstance(value, str):
        raise PartError(f"{key} is {type(value).__name__}", type(value).__name__, "a string or bytes")
    if key == "bytes":
        return _not_empty(_base64(value, key), key)
    if value.startswith("data:"):
        head, _, body = value.partition(",")
        if not head.endswith(";base64"):
            raise PartError(f"{key} is a data URL without base64", head, "data:...;base64,...")
        return _not_empty(_base64(body, key), key)
    scheme, colon, rest = value.partition("://")
    if colon and scheme != "file":
        text = f"{key} is {value}, which is not downloaded; give a path, or its bytes"
        raise PartError(text, value, "a path or bytes")
    path = unquote(rest) if colon else value
    try:
        return _not_empty(open_path(path), path)
    except (OSError, ValueError) as error:  # a path with a NUL
        if isinstance(error, PartError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PartError(f"{path} cannot be read: {reason}", path, "a file that can be read") from error


def _base64(text: str, key: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PartError(f"{key} is not base64 ({error})", text[:40], "base64") from error


def _not_empty(data: bytes, what: str) -> bytes:
    if not data:
        raise PartError(f"{what} has no bytes", 0, "an image")
    return data


def beside(directory: Path) -> OpenPath:
    """Read paths below a directory; absolute ones as they are."""
    return lambda path: (directory / path).read_bytes()
