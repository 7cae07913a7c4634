"""Images that benchmarks keep inside their tables, written to files once."""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, bad_row, read_rows
from trainer.storage.atomic import atomic_file

FOLDER = "images_unpacked"
_SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
# VLMEvalKit puts the index of another row where the image is the same
_REFERENCE = 64


def unpack(directory: Path, data: bytes) -> str:
    """Writes an image to directory/images_unpacked/HASH.png (or .jpg, ...) unless it is there; its absolute path."""
    suffix = next((suffix for start, suffix in _SIGNATURES.items() if data.startswith(start)), ".png")
    path = directory.absolute() / FOLDER / (hashlib.sha256(data).hexdigest()[:32] + suffix)
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path, durable=False) as part:
            part.write_bytes(data)
    return str(path)


def column(directory: Path, path: Path, number: int, value: Any) -> str:
    """The path of a Parquet image column: bytes, or a mapping with `bytes`, as `datasets` stores images."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise bad_row(path, number, "the image has no bytes", value=type(value).__name__, allowed="an image's bytes")
    return unpack(directory, data)


def table(directory: Path, path: Path, *required: str) -> Iterator[tuple[int, Row, list[str]]]:
    """Rows of VLMEvalKit's tables with their numbers and the paths of their images.

    `image` is base64, a list of such, or the `index` of another row with the same image.
    """
    stored: dict[str, list[str]] = {}
    for number, row in enumerate(read_rows(path, "index", "image", *required), 1):
        texts = _texts(row["image"])
        if len(texts) != 1 or len(texts[0]) > _REFERENCE:
            stored[str(row["index"])] = [_decoded(directory, path, number, text) for text in texts]
    for number, row in enumerate(read_rows(path, "index", "image", *required), 1):
        owner = str(row["index"])
        if owner not in stored:
            owner = _texts(row["image"])[0]
        if owner not in stored:
            what = f"the image is neither base64 nor the index of another row: {owner!r}"
            raise bad_row(path, number, what, value=owner, allowed="base64, or an index with an image")
        yield number, row, stored[owner]


def _texts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(one) for one in value]
    text = str(value)
    if text.startswith("["):
        try:
            return [str(one) for one in ast.literal_eval(text)]
        except (ValueError, SyntaxError):
            return [text]
    return [text]


def _decoded(directory: Path, path: Path, number: int, text: str) -> str:
    try:
        return unpack(directory, base64.b64decode(text.rpartition("base64,")[2], validate=True))
    except binascii.Error:
        raise bad_row(path, number, "the image is not base64", value=text[:40], allowed="base64") from None
