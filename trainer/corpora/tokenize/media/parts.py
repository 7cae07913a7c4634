"""The parts of a document, as rows of JSONL, Parquet and Arrow spell them, and the bytes of its media.

A document is a string, or a list of parts in the form that chat datasets use:

    {"type": "text", "text": "..."}
    {"type": "image", "image": "figure.png"}
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}
    {"type": "signal", "signal": "recording.edf", "channels": ["Fp1", "Fp2"]}
    {"type": "signal", "values": [[0.1, 2.0], [0.3, 2.1]], "rate": 100.0}

A row may have several fields with its parts, such as an image and its caption; an object with bytes or a path and no
type is an image, as `datasets` stores one.

An image or signal may also be under "path", "url" or "bytes", or an object with one of these; a signal also an object
with "array" and "sampling_rate", as `datasets` decodes sound.
A path is relative to the file with the row, or to a directory of choice. `file://` and `data:` URLs are read; others
would have to be downloaded first, and are refused. Bytes are base64 in JSON. A signal takes the options of
`read_recording`: format (which bytes need), channels, rate, variable, time and time_axis; start and seconds choose an
excerpt of it. Values are [steps] or [steps, channels].
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import numpy as np

from parallel.errors import one_of
from trainer.config.say import did_you_mean
from trainer.data.errors import DataError
from trainer.data.media.readers.read import SUFFIXES, read_recording
from trainer.data.media.readers.recording import (
    Recording,
    check_options,
    checked,
    excerpt,
    numbered,
    refuse_sideways,
)
from trainer.data.media.rules import MediaRules

T = TypeVar("T")

TYPES = ("text", "image", "image_url", "signal")
REFUSED = ("video", "video_url")
TURNS = (("role", "content"), ("from", "value"))  # keys of chat messages
SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")  # of one image, for Qwen's processors
KEYS = {
    "image": ("path", "bytes", "image", "url"),
    "image_url": ("image_url",),
    "signal": ("path", "bytes", "signal", "url", "values"),
}
EXTRA = ".[signals]"  # allowed by errors about packages that are not installed
OF_EXCERPT = ("start", "seconds")
OPTIONS = ("format", "channels", "rate", "variable", "time", "time_axis", *OF_EXCERPT)  # of a signal in a file
OF_VALUES = ("rate", "channels", "units", "time_axis")  # of a signal in the row
OBJECT = ("bytes", "url", "path")  # keys of an object that has a medium
SHOWN = 80  # characters of a value in an error


class Files(Protocol):
    """The files that paths in parts name. Both raise OSError, PartError and DataError."""

    def image(self, path: str) -> bytes: ...

    def signal(self, path: str, options: dict[str, Any]) -> Recording: ...


class PartError(ValueError):
    """A part that cannot be used. where: its number in the document, from 1, and its key."""

    def __init__(self, text: str, value: Any = None, allowed: Any = None) -> None:
        super().__init__(text)
        self.value, self.allowed = value, allowed


@dataclass(frozen=True)
class Medium:
    """An image or signal of a document. number: of the part, from 1. data: an image file, or a stored recording."""

    kind: str
    number: int
    data: bytes


def parts_of(fields: Sequence[Any], files: Files) -> list[str | Medium]:
    """Texts and media of a document in turn, from its fields; neighbouring texts are one. Raises PartError."""
    parts: list[Any] = []
    for field in fields:
        if not isinstance(field, str | Mapping | Sequence):
            raise PartError("it is neither a string nor a list of parts", type(field).__name__, "a list of parts")
        parts += [field] if isinstance(field, str | Mapping) else field
    found: list[str | Medium] = []
    for number, part in enumerate(parts, 1):
        try:
            one = _part(part, number, files)
        except PartError as error:
            raise PartError(f"part {number}: {error}", error.value, error.allowed) from error
        if isinstance(one, str) and found and isinstance(found[-1], str):
            found[-1] += one
        elif one:
            found.append(one)
    return found


def typed(kind: str, value: Any) -> list[Any]:
    """The parts of a field that has media alone: one, several, or None."""
    if value is None:
        return []
    if not isinstance(value, list):
        return [{"type": kind, kind: value}]
    if kind == "signal" and value and isinstance(value[0], int | float | list):
        return [{"type": kind, "values": value}]
    return [part for one in value for part in typed(kind, one)]


def filled(parts: Sequence[str | Medium], rules: MediaRules) -> list[str | Medium]:
    """The parts with media where `in_text` of their kind is in the text. Raises PartError where the numbers differ."""
    found = [*parts]
    for kind, rule in rules.kinds.items():
        _check_marks(found, kind, rule.field, rule.in_text)
    for kind, mark in ((kind, rule.in_text) for kind, rule in rules.kinds.items() if rule.in_text):
        media = [part for part in found if isinstance(part, Medium) and part.kind == kind]
        pieces: list[str | Medium] = []
        for part in found:
            if isinstance(part, str):
                split = part.split(mark)
                pieces += [piece for text in split for piece in (text, mark)][:-1]
            elif part.kind != kind:
                pieces.append(part)
        count = pieces.count(mark)
        if count != len(media):
            text = f"its text has {mark} {count} times, and it has {len(media)} {kind}s"
            raise PartError(text, count, len(media))
        rest = iter(media)
        found = []
        for piece in pieces:
            if piece == mark:
                found.append(next(rest))
            elif isinstance(piece, str) and found and isinstance(found[-1], str):
                found[-1] += piece
            elif piece:
                found.append(piece)
    return found


def _check_marks(parts: Sequence[str | Medium], kind: str, field: str, in_text: str) -> None:
    """Refuse a text that has the usual mark of each medium of a field as a word of its own. Raises PartError."""
    mark, count = f"<{kind}>", sum(isinstance(part, Medium) and part.kind == kind for part in parts)
    if field and not in_text and count and sum(part.count(mark) for part in parts if isinstance(part, str)) == count:
        remedy = f"--{kind} 'field={field} in_text={mark}'"
        raise PartError(
            f"its text has {mark} for each {kind}, which would be read as text; give {remedy}", mark, remedy
        )


def _part(part: Any, number: int, files: Files) -> str | Medium:
    if isinstance(part, str):
        return text_of(part)
    if isinstance(part, Mapping) and "type" not in part and {"bytes", "path"} & part.keys():
        return Medium("image", number, _image("image", part, files))
    if not isinstance(part, Mapping):
        raise PartError("it is not an object with a type", type(part).__name__, TYPES)
    turn = next((turn for turn in TURNS if all(part.get(key) is not None for key in turn)), None)
    if turn and "type" not in part:
        remedy = "write its turns as parts, with the marks of the chat as texts"
        raise PartError(f"it is a message with {turn[0]!r} and {turn[1]!r}; {remedy}", turn, remedy)
    kind = part.get("type")
    if kind in REFUSED:
        raise PartError("videos are not supported; leave them out, or give frames as images", kind, TYPES)
    if kind not in TYPES:
        raise PartError(f"its type is {kind!r}; use {one_of(TYPES)}", kind, TYPES)
    if kind == "text":
        _only(part, ("type", "text"))
        if not isinstance(part.get("text"), str):
            raise PartError("it has no text", part.get("text"), "a string under 'text'")
        return text_of(part["text"])
    given = [key for key in KEYS[kind] if part.get(key) is not None]
    if len(given) != 1:
        others = [key for key, value in part.items() if key != "type" and value is not None]
        what = f"it has {' and '.join(given or others)}" if given or others else "it has no bytes and no path"
        raise PartError(f"{what}; use one of {one_of(KEYS[kind])}", tuple(given), KEYS[kind])
    options = () if kind != "signal" else OF_VALUES if given[0] == "values" else OPTIONS
    _only(part, ("type", *KEYS[kind], *options))
    if kind == "signal":
        return Medium(kind, number, _signal(given[0], part, files).to_bytes())
    return Medium("image", number, _image(given[0], part[given[0]], files))


def _only(part: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Refuse other keys, which would be without effect; null is not given. Raises PartError."""
    for key, value in part.items():
        if value is not None and key in SIZES and key not in allowed:
            remedy = "leave it out; --image 'min_pixels=N max_pixels=N' holds for all images"
            raise PartError(f"it has {key!r}, a size of its own; {remedy}", key, remedy)
        if value is not None and key not in allowed:
            text = f"it has {key!r}, which is not one of {one_of(allowed)}{did_you_mean(key, allowed)}"
            raise PartError(text, key, tuple(allowed))


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}..."


def text_of(text: str) -> str:
    """The text, if it can be encoded. Raises PartError for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PartError(f"its text has \\u{ord(text[error.start]):04x}, half of a surrogate pair") from None
    return text


def _image(key: str, value: Any, files: Files) -> bytes:
    found = _bytes_or_path(key, value)
    return found if isinstance(found, bytes) else _not_empty(_read(found, files.image), found)


def _signal(key: str, part: Mapping[str, Any], files: Files) -> Recording:
    options = {name: part[name] for name in OPTIONS if part.get(name) is not None}
    if "time_axis" in options:
        options["time_axis"] = _axis(part)
    value = part[key]
    if isinstance(value, Mapping) and isinstance(name := value.get("path"), str):  # bytes of a file with a name
        options = {"format": SUFFIXES.get(Path(name).suffix.lower())} | options
    try:
        if key == "values":
            return _from_values(part)
        if isinstance(value, Mapping) and value.get("array") is not None:  # sound that datasets has decoded
            return _from_values(
                {"values": value["array"], "rate": value.get("sampling_rate"), "time_axis": part.get("time_axis")}
            )
        found = _bytes_or_path(key, value)
        if isinstance(found, str):
            return _read(found, lambda path: files.signal(path, options))
        return read_recording(found, where=key, **options)
    except DataError as error:
        if error.allowed == EXTRA:  # no fault of the part
            raise
        raise PartError(error.faults[0].text, error.faults[0].value, error.faults[0].allowed) from error


def _axis(part: Mapping[str, Any]) -> Any:
    """The part's time_axis; a row of Parquet may have it as a float."""
    axis = part.get("time_axis")
    return int(axis) if isinstance(axis, float) and axis.is_integer() else axis


def _from_values(part: Mapping[str, Any]) -> Recording:
    """A recording whose numbers are in the row. Raises DataError, PartError."""
    axis = _axis(part)
    check_options("values", time_axis=axis, **{key: part.get(key) for key in ("rate", "channels", "units")})
    try:
        values = np.asarray(part["values"], np.float64)
    except (TypeError, ValueError) as error:
        raise PartError(f"its values are not numbers of one shape ({error})", None, "[steps, channels]") from error
    if axis not in (None, *range(values.ndim)):
        raise PartError(f"time_axis={axis} of values with {values.ndim} axes", axis, tuple(range(values.ndim)))
    values = np.moveaxis(values, axis or 0, 0) if values.ndim else values
    if axis is None and not part.get("channels"):
        refuse_sideways(values.shape, "values")
    values = values[:, None] if values.ndim == 1 else values
    count = values.shape[1] if values.ndim == 2 else 0
    names, units = part.get("channels") or numbered(count), part.get("units") or [""] * count
    if not len(names) == len(units) == count:
        text = f"it has {len(names)} channels and {len(units)} units, but {count} columns of values"
        raise PartError(text, (len(names), len(units)), count)
    return checked(Recording(values, part.get("rate"), tuple(names), tuple(units)), "values")


def _bytes_or_path(key: str, value: Any) -> bytes | str:
    if isinstance(value, Mapping):  # {"url"} of chat formats, or what datasets keeps of an image
        _only(value, (*OBJECT, "detail"))  # detail: of chat formats, for a service
        inside = [name for name in OBJECT if value.get(name) is not None]
        if not inside:
            raise PartError(f"{key} has no bytes and no path", tuple(value), OBJECT)
        return _bytes_or_path(inside[0], value[inside[0]])
    if isinstance(value, bytes | bytearray | memoryview):
        return _not_empty(bytes(value), key)
    if not isinstance(value, str):
        raise PartError(f"{key} is {type(value).__name__}", type(value).__name__, "a string or bytes")
    if key == "bytes":
        return _not_empty(_base64(value, key), key)
    if value.startswith("data:"):
        head, _, body = value.partition(",")
        if not head.endswith(";base64"):
            raise PartError(f"{key} is a data URL without base64", _short(head), "data:...;base64,...")
        return _not_empty(_base64(body, key), key)
    scheme, colon, rest = value.partition("://")
    if colon and scheme != "file":
        text = f"{key} is {_short(value)}, which is not downloaded; give a path, or its bytes"
        raise PartError(text, _short(value), "a path or bytes")
    return unquote(rest) if colon else value


def _read(path: str, read: Callable[[str], T]) -> T:
    try:
        return read(path)
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        if isinstance(error, PartError | DataError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        hint = "; base64 is given under 'bytes'" if len(path) > SHOWN else ""
        text = f"{_short(path)} cannot be read: {reason}{hint}"
        raise PartError(text, _short(path), "a file that can be read") from error


def _base64(text: str, key: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PartError(f"{key} is not base64 ({error})", text[:40], "base64") from error


def _not_empty(data: bytes, what: str) -> bytes:
    if not data:
        raise PartError(f"{what} has no bytes", 0, "a file with bytes")
    return data


@dataclass(frozen=True)
class Directory:
    """Files below a directory; absolute paths as they are.

    The last recording with excerpts stays in memory, since neighbouring documents usually have the next ones of it.
    """

    root: Path
    _last: dict[str, Recording] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def image(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def signal(self, path: str, options: dict[str, Any]) -> Recording:
        where, of_whole = _short(path), {key: value for key, value in options.items() if key not in OF_EXCERPT}
        if of_whole == options:
            return read_recording(self.root / path, where=where, **options)
        span = {key: options.get(key) for key in OF_EXCERPT}
        check_options(where, **span)
        key = repr((path, sorted(of_whole.items())))
        if key not in self._last:
            self._last.clear()
            self._last[key] = read_recording(self.root / path, where=where, **of_whole)
        return checked(excerpt(self._last[key], **span, where=where), where)
