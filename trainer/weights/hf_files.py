"""The tensors in the safetensors files of a directory, from the headers alone. No torch here.

A safetensors file is 8 bytes with the length of its header (little endian), the header in JSON, then the tensors' bytes
in row-major order: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {...}},
offsets counted from the header's end. Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from parallel.errors import UserError
from trainer.storage.boxes import StoredTensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*.safetensors"  # without an index; variants such as model.fp16.safetensors are other copies
ADAPTER = "adapter_config.json"
CONFIG = "config.json"
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses longer ones too
BITS = {
    "F64": 64, "F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


class HuggingFaceError(UserError, ValueError):
    """A Hugging Face directory that cannot be used; the message names the file, key or tensor."""


def byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; `dtype` is a key of BITS."""
    return prod(shape) * BITS[dtype] // 8


@dataclass(frozen=True)
class Directory:
    """A directory's config.json and, by name, all tensors of its files."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]


def open_directory(path: Path) -> Directory:
    """Read config.json, the index where there is one, and the header of every file.

    Raises HuggingFaceError for what is missing, damaged or cut short, and for an adapter beside the weights.
    """
    if not (path / CONFIG).is_file():
        raise HuggingFaceError(
            f"{path}: no {CONFIG}; give a Hugging Face model directory", where=str(path), allowed="a model directory"
        )
    config = read_json(path / CONFIG)
    if os.path.lexists(path / ADAPTER):
        remedy = "merge it into the weights, or move it away"
        raise HuggingFaceError(
            f"{path / ADAPTER}: an adapter changes what the weights compute, and adapters are not supported; {remedy}",
            where=str(path / ADAPTER),
            allowed=remedy,
        )
    return Directory(path, config, stored_tensors(path))


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a directory by name, from the headers of `weight_files`. Raises HuggingFaceError as
    `open_directory`."""
    files, listed = weight_files(path)
    tensors: dict[str, StoredTensor] = {}
    counts = Counter(listed.values())
    for file in files:
        if listed and not file.is_file():
            count = sum(number for name, number in counts.items() if path / name == file)
            gone = "a link to a file that does not exist" if file.is_symlink() else "missing"
            raise HuggingFaceError(
                f"{file} is {gone}; {INDEX} says that it holds {count} of {len(listed)} tensors",
                where=str(file),
                allowed=f"all files that {INDEX} lists",
            )
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise HuggingFaceError(
                    f"{tensor.name} is in two files: {tensors[tensor.name].file} and {file}; keep one of them",
                    where=str(file),
                    value=tensor.name,
                    allowed="a tensor in one file only",
                )
            tensors[tensor.name] = tensor
    for name, where in listed.items():
        if name not in tensors or tensors[name].file != path / where:
            raise HuggingFaceError(
                f"{path / where}: tensor {name} is missing, although {INDEX} lists it",
                where=str(path / where),
                value=name,
                allowed=f"the tensors that {INDEX} lists for the file",
            )
    return tensors


def weight_files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold a directory's tensors, and the index as far as it describes them.

    They are those that the index lists; without one, `model.safetensors` and numbered files. An index whose files are
    gone is left over where `model.safetensors` exists, as when transformers saves one file over several. Raises
    HuggingFaceError for an index that cannot be read, where both are there, and where there are no files.
    """
    index = read_index(path)
    listed = index or {}
    files = sorted({path / name for name in listed.values()})
    single = path / SINGLE
    if single.is_file() and single not in files:
        kept = [file for file in files if file.is_file()]
        if kept:
            remedy = f"remove {SINGLE}, or remove {INDEX} and its files"
            raise HuggingFaceError(
                f"{path}: two models: {SINGLE}, which other programs read, and {INDEX} with {kept[0].name}; {remedy}",
                where=str(path),
                value=(SINGLE, INDEX),
                allowed=remedy,
            )
        files, listed = [], {}
    if not listed:
        files = [*([single] if os.path.lexists(single) else []), *sorted(path.glob(SHARDS))]
    if not files and index is None:
        raise HuggingFaceError(
            f"{path} contains neither {SINGLE} nor {INDEX}", where=str(path), allowed=(SINGLE, INDEX)
        )
    return files, listed


def read_index(path: Path) -> dict[str, str] | None:
    """The index of a directory: tensor -> file, relative to `path`; None without one. Raises HuggingFaceError."""
    index = path / INDEX
    if not index.exists():
        return None
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise HuggingFaceError(
            f"{index}: its weight_map does not map tensors to files",
            where=str(index),
            allowed="a map from tensors to files",
        )
    return listed


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, in the order of its header, once its size is what they need.

    Raises HuggingFaceError naming the file.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if len(prefix) < 8 or length > min(size - 8, LONGEST_HEADER):
                raise HuggingFaceError(
                    f"{file}: truncated, or not a safetensors file; its header does not fit in its {size} bytes",
                    where=str(file),
                    value=size,
                    allowed="a complete safetensors file",
                )
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = []
        for name, facts in header.items():
            dtype, shape, (start, stop) = facts["dtype"], tuple(facts["shape"]), facts["data_offsets"]
            if dtype not in BITS:
                raise HuggingFaceError(
                    f"{file}: {name} has the dtype {dtype}, which is not supported",
                    where=str(file),
                    value=dtype,
                    allowed=tuple(BITS),
                )
            if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
                raise HuggingFaceError(
                    f"{file}: {name} has a shape or data_offsets that are not whole numbers",
                    where=str(file),
                    value=name,
                    allowed="whole numbers, 0 or more",
                )
            if stop - start != byte_count(dtype, shape):
                raise HuggingFaceError(
                    f"{file}: {name} has {stop - start} bytes, but {dtype} {list(shape)} needs "
                    f"{byte_count(dtype, shape)}",
                    where=str(file),
                    value=stop - start,
                    allowed=byte_count(dtype, shape),
                )
            tensors.append(StoredTensor(name, dtype, shape, file, 8 + length + start, stop - start))
    except OSError as error:
        raise HuggingFaceError(
            f"{file}: {error.strerror or error}", where=str(file), value=error.strerror, allowed="a readable file"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, HuggingFaceError):
            raise
        raise HuggingFaceError(
            f"{file}: not a safetensors file: its header cannot be read ({error})",
            where=str(file),
            allowed="a complete safetensors file",
        ) from error
    end, before = 0, "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.nbytes)):
        if (gap := tensor.start - 8 - length - end) != 0:
            what = f"{gap} bytes after" if gap > 0 else f"{-gap} bytes inside"
            raise HuggingFaceError(
                f"{file}: {tensor.name} starts {what} {before}; tensors must be contiguous",
                where=str(file),
                value=tensor.name,
                allowed="tensors without gaps or overlaps",
            )
        end, before = end + tensor.nbytes, tensor.name
    if size != 8 + length + end:
        raise HuggingFaceError(
            f"{file}: truncated or damaged: {size:,} bytes, but its header describes {8 + length + end:,}",
            where=str(file),
            value=size,
            allowed=8 + length + end,
        )
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises HuggingFaceError naming the file, also where a key has two different values."""
    contradictory: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            contradictory.extend(key for key, value in pairs if repr(value) != repr(values[key]))
        return values

    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):
            remedy = "save it as UTF-8 without one"
            raise HuggingFaceError(
                f"{path}: starts with a byte order mark; {remedy}", where=str(path), value="\ufeff", allowed=remedy
            )
        value = json.loads(text, object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, HuggingFaceError):
            raise
        raise HuggingFaceError(f"{path}: not JSON: {error}", where=str(path), allowed="a JSON object") from error
    if not isinstance(value, dict):
        raise HuggingFaceError(f"{path}: not a JSON object", where=str(path), allowed="a JSON object")
    if contradictory:
        raise HuggingFaceError(
            f"{path}: {contradictory[0]} appears twice, with different values; keep one",
            where=str(path),
            value=contradictory[0],
            allowed="each key once",
        )
    return value
