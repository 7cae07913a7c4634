"""One tar file of pairs as img2dataset leaves it, and the status file beside it.

WebDataset's form: files of one sample are neighbours, named KEY.EXTENSION: an image, its caption in .txt, what is known
of it in .json. Beside NAME.tar there is NAME.parquet, with a row for each link that was tried, failed ones included.

Legend: n pairs.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.corpora.tar_files import files_of
from trainer.data.hashing import bytes_key
from trainer.data.media.images import SUFFIXES
from trainer.data.pairs.index import ROW, TEXTS, caption_key, text_of

SUCCESS = "success"
MAX_REASONS = 20  # reasons of failures that are counted by name; others are added up
OTHER = "other"


def read_tar(path: Path, number: int, texts: tuple[str, ...]) -> tuple[npt.NDArray[np.void], dict[str, Any]]:
    """Rows [n] of a tar file's pairs, and its facts: `counts`, `status`, `reasons` and `damage` (None without any).

    number: of the file in the index. texts: kinds of the text to look for, the first one that is there is taken.
    A sample without an image or without a text is counted and left out. Reads all of the file. Raises OSError.
    """
    counts: Counter[str] = Counter()
    rows = []
    damage = None
    try:
        for files in _samples(path):
            row = _row(files, number, texts, counts)
            if row is not None:
                rows.append(row)
    except tarfile.TarError as error:
        damage = str(error) or type(error).__name__
    status, reasons = read_status(path.with_suffix(".parquet"))
    lost = status.get(SUCCESS, 0) - counts["samples"]
    if status and lost > 0:
        counts["missing_from_tar"] += lost
    facts = {"counts": dict(counts), "status": dict(status), "reasons": dict(reasons), "damage": damage}
    return np.array(rows, ROW), facts


def read_status(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Links by status, such as `success` and `failed_to_download`, and failures by reason. Empty without a file."""
    if not path.is_file():
        return Counter(), Counter()
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=["status", "error_message"])
    status = Counter(str(value) for value in table["status"].to_pylist())
    messages = [_reason(message) for message in table["error_message"].to_pylist() if message]
    return status, fewer(Counter(messages))


def fewer(reasons: Counter[str]) -> Counter[str]:
    """The commonest reasons, and the sum of the others."""
    named = Counter({name: count for name, count in reasons.items() if name != OTHER})
    kept = Counter(dict(named.most_common(MAX_REASONS)))
    if rest := reasons.total() - kept.total():
        kept[OTHER] = rest
    return kept


def _reason(message: str) -> str:
    """Without addresses and numbers of its own, so that alike failures count together."""
    return re.sub(r"https?://\S+|'[^']*'", "...", " ".join(message.split()))[:100]


def _samples(path: Path) -> Iterator[dict[str, tuple[tarfile.TarInfo, bytes]]]:
    """Extension -> file and content of each sample. That at which a truncated file ends is left out."""
    key: tuple[str, str] | None = None
    files: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    for member, content in files_of(path):
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if (folder, stem) != key and files:
            yield files
            files = {}
        key = folder, stem
        files[extension.lower()] = member, content
    if files:
        yield files


def _row(
    files: dict[str, tuple[tarfile.TarInfo, bytes]], number: int, texts: tuple[str, ...], counts: Counter[str]
) -> tuple[int, ...] | None:
    counts["samples"] += 1
    image = next((files[extension] for extension in SUFFIXES if extension in files), None)
    if image is None or not image[1]:
        counts["without_image"] += 1
        return None
    for kind in texts:
        if kind in files and (text := text_of(files[kind][1], kind)) is not None:
            break
    else:
        counts["without_caption"] += 1
        return None
    counts["pairs"] += 1
    places = image[0].offset_data, image[0].size, files[kind][0].offset_data, files[kind][0].size
    return (caption_key(text), bytes_key(image[1]), *places, TEXTS.index(kind), number)
