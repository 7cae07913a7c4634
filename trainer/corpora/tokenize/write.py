"""Second pass: write the documents of a range of keys, in order, as one shard of Megatron's files."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.corpora.tokenize.spool import PartFile, write_json
from trainer.data.errors import DataError
from trainer.data.shards import files as shard_files
from trainer.data.shards.megatron_index import DTYPES, HEADER, MAGIC
from trainer.storage.atomic import atomic_file

Facts = dict[str, Any]
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
    spool: Path, target: Path, stem: str, keys: tuple[int, int], parts: Sequence[Facts], dtype: np.dtype[Any]
) -> Facts:
    """Write the shard of the documents with keys[0] <= key < keys[1]; return its facts, as in `<stem>.json`.

    Memory: the shard's tokens, once.
    """
    found = [PartFile(spool / part["file"], part, dtype).between(*keys) for part in parts]
    key_D = np.concatenate([key for key, _, _ in found])
    length_D = np.concatenate([length for _, length, _ in found])
    tokens = np.concatenate([some for _, _, some in found])
    del found
    start_D = np.cumsum(length_D) - length_D
    order_D = np.argsort(key_D, kind="stable")  # equal keys: in the order of the parts
    with atomic_file(target / f"{stem}.bin") as bin_path:
        writer = builder(str(bin_path), dtype)
        for start, length in zip(start_D[order_D].tolist(), length_D[order_D].tolist(), strict=True):
            writer.add_document(tokens[start : start + length], [length])
        with atomic_file(target / f"{stem}.idx") as idx_path:
            writer.finalize(str(idx_path))
    facts: Facts = {
        "stem": stem, "tokens": len(tokens), "documents": len(order_D), "files": shard_files.hash_shard(target / stem)
    }  # fmt: skip
    write_json(spool / f"{stem}.json", facts)
    return facts
