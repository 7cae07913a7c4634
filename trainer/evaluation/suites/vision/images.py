"""Images that benchmarks keep inside their tables, written to files once."""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
from collections.abc import Iterator
from pathlib import Path

from trainer.evaluation.files import Row, read_rows
from trainer.storage.atomic import atomic_file

FOLDER = "images_unpacked"
_SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
# VLMEvalKit puts the index of another row where the image is the same
_REFERENCE = 64


def where(file: str) -> str:
    """The name of one of VLMEvalKit's tables, and its address."""
    return f"{file} (VLMEvalKit's: opencompass.openxlab.space/utils/VLMEval/{file})"


def unpack(directory: Path, data: bytes) -> str:
    """Writes an image to directory/images_unpacked/HASH.png (or .jpg, ...) unless it is there; its absolute path."""
    suffix = next((suffix for start, suffix in _SIGNATURES.items() if data.startswith(start)), ".png")
    path = directory.absolute() / FOLDER / (hashlib.sha256(data).hexdigest()[:32] + suffix)
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path, durable=False) as part:
            part.write_bytes(data)
    return str(path)


def column(directory: Path, row: Row, name: str) -> str:
    """The path of a Parquet image column: bytes, or a mapping with `bytes`, as `datasets` stores images."""
    value = row.cells.get(name)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise row.wrong(name, "an image's bytes")
    return unpack(directory, data)


def table(directory: Path, path: Path, *required: str) -> Iterator[tuple[Row, list[str]]]:
    """Rows of VLMEvalKit's tables and the paths of their images.

    `image` is base64, a list of such, or the `index` of another row with the same image.
    """
    own: list[list[str]] = []  # of each row; none where it points to another
    of_index: dict[str, list[str]] = {}
    twice: set[str] = set()  # indices of rows with different images: RefCOCO counts anew in each split
    for row in read_rows(path, "index", "image", *required):
        texts, index = _texts(row), row.name("index")
        points = len(texts) == 1 and len(texts[0]) <= _REFERENCE
        own.append([] if points else [_decoded(directory, row, text) for text in texts])
        if own[-1] and of_index.setdefault(index, own[-1]) != own[-1]:
            twice.add(index)
    for row, paths in zip(read_rows(path, "index", "image", *required), own, strict=True):
        other = "" if paths else _texts(row)[0]
        if not paths and (other not in of_index or other in twice):
            what = f"the image is neither base64 nor the index of one other row: {other!r}"
            raise row.fault(what, value=other, allowed="base64, or an index with an image")
        yield row, paths or of_index[other]


def _texts(row: Row) -> list[str]:
    value = row.cells.get("image")
    if isinstance(value, list):
        return row.texts("image")
    text = row.name("image")
    if text.startswith("["):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found = None
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise row.fault("the image is not a list of texts", value=text[:40], allowed="a list of base64")
        return found
    return [text]


def _decoded(directory: Path, row: Row, text: str) -> str:
    try:
        return unpack(directory, base64.b64decode(text.rpartition("base64,")[2], validate=True))
    except binascii.Error:
        raise row.fault("the image is not base64", value=text[:40], allowed="base64") from None
