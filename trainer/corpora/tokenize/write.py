"""Second pass: write the documents of a range of keys, in order, as one shard of Megatron's files."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.corpora.tokenize.media.spooled import gathered, write_media
from trainer.corpora.tokenize.spool import PartFile, write_json
from trainer.data.errors import DataError
from trainer.data.media.store import MEDIA
from trainer.data.shards import files as shard_files
from trainer.data.shards.megatron_index import DTYPES, HEADER, MAGIC
from trainer.storage.atomic import atomic_file

Facts = dict[str, Any]
BUCKETS_BITS = 16  # keys are counted by their first bits to cut them into shards
HAS_WHEEL = sys.platform == "linux" and sys.version_info < (3, 14)  # of megatron-core


class Builder(Protocol):
    """The part of megatron.core's IndexedDatasetBuilder that is used here."""

    def add_document(self, tensor: Any, lengths: list[int]) -> None: ...

    def finalize(self, idx_path: str) -> None: ...


class PlainBuilder:
    """Writes the same bytes as Megatron's builder, for machines without a wheel of megatron-core."""

    def __init__(self, bin_path: str, dtype: np.dtype[Any]) -> None:
        self._bin, self._dtype = open(bin_path, "wb"), dtype  # noqa: SIM115 (finalize closes it)
        self._lengths: list[int] = []

    def add_document(self, tensor: npt.NDArray[Any], lengths: list[int]) -> None:
        self._bin.write(tensor.astype(self._dtype).tobytes())
        self._lengths.extend(lengths)

    def finalize(self, idx_path: str) -> None:
        self._bin.close()
        lengths = np.array(self._lengths, "<i4")
        starts = np.cumsum(lengths, dtype="<i8") - lengths
        code = next(code for code, name in DTYPES.items() if np.dtype(name) == self._dtype)
        with open(idx_path, "wb") as file:
            file.write(HEADER.pack(MAGIC, 1, code, len(lengths), len(lengths) + 1))
            file.write(lengths.tobytes())
            file.write((starts * self._dtype.itemsize).astype("<i8").tobytes())
            file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest dtype that Megatron writes for a vocabulary: its `DType.optimal_dtype`."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


def builder(bin_path: str, dtype: np.dtype[Any]) -> Builder:
    """Megatron-core's builder, whose import takes 5 CPU-seconds and 0.5 GB with torch. Raises DataError if it is not
    installed."""
    if not HAS_WHEEL:
        return PlainBuilder(bin_path, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about GPU packages that it would use
            from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    except ImportError as error:
        remedy = "pip install -e '.[data]'"
        raise DataError(
            f"writing shards needs megatron-core ({error}): {remedy}", where="megatron-core", allowed=remedy
        ) from error
    built: Builder = IndexedDatasetBuilder(bin_path, dtype=dtype.type)
    return built


def write_shard(
    spool: Path,
    target: Path,
    stem: str,
    keys: tuple[int, int],
    parts: Sequence[Facts],
    dtype: np.dtype[Any],
    media: bool = False,
) -> Facts:
    """Write the shard of the documents with keys[0] <= key < keys[1]; return its facts, as in `<stem>.json`.

    media: write the images and signals of the documents as well. Memory: the shard's tokens, once.
    """
    files = [PartFile(spool / part["file"], part, dtype) for part in parts]
    found = [file.between(*keys) for file in files]
    key_D = np.concatenate([key for key, _, _ in found])
    length_D = np.concatenate([length for _, length, _ in found])
    tokens = np.concatenate([some for _, _, some in found])
    first_of = np.cumsum([0, *(len(key) for key, _, _ in found)])  # document of each part
    del found
    start_D = np.cumsum(length_D) - length_D
    order_D = np.argsort(key_D, kind="stable")  # equal keys: in the order of the parts
    with atomic_file(target / f"{stem}.bin") as bin_path:
        writer = builder(str(bin_path), dtype)
        for start, length in zip(start_D[order_D].tolist(), length_D[order_D].tolist(), strict=True):
            writer.add_document(tokens[start : start + length], [length])
        with atomic_file(target / f"{stem}.idx") as idx_path:
            writer.finalize(str(idx_path))
    facts: Facts = {"stem": stem, "tokens": len(tokens), "documents": len(order_D)}
    if media:
        placed_D = np.empty(len(order_D), np.int64)  # first token of each document in the shard
        placed_D[order_D] = np.cumsum(length_D[order_D]) - length_D[order_D]
        found_media = []
        for part, file, first in zip(parts, files, first_of.tolist(), strict=False):
            if part.get("media"):
                path = spool / next(name for name in part["media"] if name.endswith(MEDIA))
                records, documents = gathered(path, file.ends, *file.span(*keys))
                found_media.append((path, records, placed_D[first + documents]))
        facts |= write_media(target / stem, found_media)
    facts["files"] = shard_files.hash_shard(target / stem)
    write_json(spool / f"{stem}.json", facts)
    return facts


def key_ranges(spool: Path, parts: Sequence[Facts], shard_tokens: int, dtype: np.dtype[Any]) -> list[tuple[int, int]]:
    """Ranges of keys with about `shard_tokens` tokens each, or less, none empty."""
    count = 1 << BUCKETS_BITS
    tokens_per_bucket = np.zeros(count, np.int64)
    for facts in parts:
        part = PartFile(spool / facts["file"], facts, dtype)
        buckets = (part.keys >> np.uint64(64 - BUCKETS_BITS)).astype(np.int64)
        np.add.at(tokens_per_bucket, buckets, np.diff(part.ends, prepend=0))
    reached = np.cumsum(tokens_per_bucket)
    total = int(reached[-1])
    if not total:
        return []
    shards = -(-total // shard_tokens)
    goals = [total * shard // shards for shard in range(1, shards)]
    inner = sorted({int(np.searchsorted(reached, goal)) + 1 for goal in goals} - {count})
    edges = [0, *(edge << (64 - BUCKETS_BITS) for edge in inner), 1 << 64]
    filled = [0, *reached[[edge - 1 for edge in inner]].tolist(), total]
    return [(edges[place], edges[place + 1]) for place in range(len(edges) - 1) if filled[place + 1] > filled[place]]


def finished_shard(spool: Path, target: Path, stem: str) -> Facts | None:
    """A shard's facts, if an earlier start wrote it and it is intact."""
    try:
        facts: Facts = json.loads((spool / f"{stem}.json").read_text())
    except (OSError, ValueError):
        return None
    return None if shard_files.hash_fault(target, facts) else facts
