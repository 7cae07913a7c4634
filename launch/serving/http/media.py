"""Images and signals of messages, as Intern-S1-Pro's serving guide names them.

    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}
    {"type": "time_series_url", "time_series_url": {"url": "data:time_series/npy;base64,...", "sampling_rate": 100}}

A template that knows images writes their placeholders; of others, and of signals, the placeholder is where the part is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from launch.serving.http.errors import ApiError
from trainer.data.errors import DataError
from trainer.data.media.readers.read import SUFFIXES, read_recording
from trainer.engine.load import Source
from trainer.engine.media import Medium

KINDS = {"image_url": "image", "time_series_url": "signal"}
FIELDS = {"image_url": {"url", "detail"}, "time_series_url": {"url", "sampling_rate"}}
MOST, SECONDS = 64, 20.0  # media of a request; of a download
DATA = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),(.*)", re.DOTALL)


@dataclass(frozen=True)
class Sources:
    """The places that media may come from beside the request: below the folder `files`, and from other servers."""

    files: Path | None = None
    http: bool = False


NOWHERE = Sources()


class WithMedia(NamedTuple):
    """native: messages whose images are parts of type `image`. plain: the same with all content as text."""

    native: list[Any]
    plain: list[Any]
    media: list[Medium]


def has_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(_kind(part) for message in messages for part in _parts(message))


def take(messages: Sequence[Mapping[str, Any]], source: Source, sources: Sources, *, most: int) -> WithMedia:
    """Read the media of messages. most: bytes of one. Raises ApiError."""
    found = WithMedia([], [], [])
    for place, message in enumerate(messages):
        if not any(_kind(part) for part in _parts(message)):
            found.native.append(message)
            found.plain.append(message)
            continue
        native: list[dict[str, str]] = []
        texts: list[str] = []
        for number, part in enumerate(_parts(message)):
            where = f"messages[{place}].content[{number}]"
            if not (named := _kind(part)):
                texts.append(_text(part, where))
                native.append({"type": "text", "text": texts[-1]})
                continue
            if len(found.media) == MOST:
                raise ApiError(400, f"{where}: at most {MOST} images and signals are read", param=where)
            found.media.append(medium := _medium(named, part.get(named), source, sources, where, most))
            spelled = source.require_tokenizer().token(source.rules.kinds[medium.kind].token) or ""
            written = spelled in "".join(_text(other, where) for other in _parts(message) if not _kind(other))
            texts.append("" if written else spelled)
            image = medium.kind == "image" and not written
            native.append({"type": "image"} if image else {"type": "text", "text": texts[-1]})
        found.native.append({**message, "content": native})
        found.plain.append({**message, "content": "".join(texts)})
    return found


def _parts(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if isinstance(kind, str) and kind in KINDS else None


def _text(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise ApiError(400, f"{where}: give a part of type text, {' or '.join(KINDS)}", param=where)
    return text


def _medium(named: str, given: Any, source: Source, sources: Sources, where: str, most: int) -> Medium:
    where = f"{where}.{named}"
    fields: Any = {"url": given} if isinstance(given, str) else given
    if not isinstance(fields, Mapping) or not isinstance(fields.get("url"), str):
        raise ApiError(400, f'{where}: give {{"url": "data:..."}}', param=where)
    if unknown := fields.keys() - FIELDS[named]:
        raise ApiError(400, f"{where}.{min(unknown)}: there is no such field", param=where)
    rate = fields.get("sampling_rate")
    if rate is not None and (type(rate) not in (int, float) or not 0 < rate < float("inf")):
        raise ApiError(400, f"{where}.sampling_rate={rate!r}: use a number above 0", param=f"{where}.sampling_rate")
    try:
        if KINDS[named] not in source.rules.kinds:
            return source.medium(KINDS[named], b"", where)  # which raises
        data, suffix = _fetch(fields["url"], where, sources, most)
        if named == "image_url":
            return source.medium("image", data, where)
        rate = None if rate is None else float(rate)
        recording = read_recording(data, where=where, format=SUFFIXES.get(suffix), rate=rate)
        return source.medium("signal", recording, where)
    except DataError as error:
        raise ApiError(400, str(error), param=where) from None


def _fetch(url: str, where: str, sources: Sources, most: int) -> tuple[bytes, str]:
    """The bytes of a URL, and the suffix of a file of its kind. Raises ApiError."""
    if matched := DATA.fullmatch(url):
        kind, options, content = matched.groups()
        suffix = "." + kind.rpartition("/")[2].lower().removeprefix("x-")
        if "base64" not in options.split(";"):
            raise ApiError(400, f"{where}.url: use data:TYPE;base64,...", param=f"{where}.url")
        try:
            return base64.b64decode(content, validate=True), suffix
        except binascii.Error as error:
            raise ApiError(400, f"{where}.url is not base64: {error}", param=f"{where}.url") from None
    try:
        scheme, suffix = urlsplit(url).scheme.lower(), Path(urlsplit(url).path).suffix.lower()
    except ValueError as error:
        raise ApiError(400, f"{where}.url is not a URL: {error}", param=f"{where}.url") from None
    if scheme == "file" and sources.files is not None:
        return _read_file(url, where, sources.files, most), suffix
    if scheme in ("http", "https") and sources.http:
        return _download(url, where, most), suffix
    needed = {"file": "--media-dir", "http": "--media-http", "https": "--media-http"}.get(scheme)
    remedy = "use a data: URL" + (f", or start the server with {needed}" if needed else "")
    raise ApiError(400, f"{where}.url: {remedy}", param=f"{where}.url")


def _read_file(url: str, where: str, folder: Path, most: int) -> bytes:
    try:
        path = Path(unquote(urlsplit(url).path)).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError):
        text = f"{where}.url: there is no such file below the server's --media-dir"
        raise ApiError(400, text, param=f"{where}.url") from None
    return _small(data, where, most)


def _download(url: str, where: str, most: int) -> bytes:
    """Redirects are not followed: they may lead to addresses that only the server reaches."""
    import httpx

    data = bytearray()
    try:
        with httpx.stream("GET", url, timeout=SECONDS, follow_redirects=False) as answer:
            if answer.status_code != 200:
                raise ApiError(
                    400, f"{where}.url: the other server answered {answer.status_code}", param=f"{where}.url"
                )
            for part in answer.iter_bytes():
                data += part
                if len(data) > most:
                    break
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiError(400, f"{where}.url cannot be read: {error}", param=f"{where}.url") from None
    return _small(bytes(data), where, most)


def _small(data: bytes, where: str, most: int) -> bytes:
    if len(data) > most:
        text = f"{where}.url has more than {most:,} bytes; start the server with a larger --max-body"
        raise ApiError(413, text, param=f"{where}.url")
    return data
