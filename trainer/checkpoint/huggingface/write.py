"""A stream of tensors into a new Hugging Face directory: one group of tensors in memory at a time.

Everything is known before the first byte: names, dtypes, shapes and so the size of every file. The directory is written
beside its place, each file synced, and takes its name last: what bears it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoint.huggingface.files import CONFIG, INDEX, HuggingFaceError, StoredTensor, byte_count
from trainer.checkpoint.huggingface.names import whole
from trainer.checkpoint.huggingface.read import DTYPES, bytes_of, read_box
from trainer.checkpoint.manifest import file_facts, sync_directory, write_manifest
from trainer.checkpoint.temporary import OWNER, remove_left_behind, temporary_beside

SHARD_BYTES = 5_000_000_000
# What else belongs to a model: tokenizer, chat template, processors, generation defaults, code.
SIDE_FILES = (
    "tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.jinja", "*template*.json",
    "generation_config.json", "*processor*.json", "*.py",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A tensor to be written."""

    name: str
    dtype: str  # a key of `read.DTYPES`
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return byte_count(self.dtype, self.shape)


@dataclass(frozen=True)
class Group:
    """Tensors that are made together; `make` returns them in the order of `outputs`."""

    outputs: tuple[Output, ...]
    make: Callable[[], Sequence[Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)


def copy_of(tensor: StoredTensor) -> Group:
    """A tensor of another directory, byte for byte."""
    return Group((Output(tensor.name, tensor.dtype, tensor.shape),), lambda: [read_box(tensor, whole(tensor.shape))])


def side_files(directory: Path) -> list[Path]:
    """The files of a model directory that go with it and hold no tensors."""
    found = {file for pattern in SIDE_FILES for file in directory.glob(pattern) if file.is_file()}
    return sorted(found)


def write_directory(
    target: Path,
    groups: Sequence[Group],
    config: Mapping[str, Any],
    beside: Iterable[Path] = (),
    *,
    shard_bytes: int = SHARD_BYTES,
    manifest: Mapping[str, Any] | None = None,
    wrote: Callable[[int], None] = lambda nbytes: None,
) -> int:
    """Make `target` with the tensors of `groups`, an index of them, config.json and copies of the files `beside`.

    Args:
        shard_bytes: no file is larger, unless a single group is.
        manifest: facts of a manifest.json with size and SHA-256 of every file; None: no manifest.
        wrote: told the bytes of each group once they are written.
    Returns: the bytes of all tensors.
    Raises: HuggingFaceError where `target` exists, the disk is too small (before the first byte is written) or cannot
        be written; nothing is left behind.
    """
    beside = list(beside)
    total = sum(group.nbytes for group in groups)
    try:
        make_room(target, total + sum(file.stat().st_size for file in beside))
        with temporary_beside(target) as temporary:
            index: dict[str, str] = {}
            shards = _shards(groups, shard_bytes)
            for number, shard in enumerate(shards, 1):
                name = f"model-{number:05}-of-{len(shards):05}.safetensors"
                _write_shard(temporary / name, shard, wrote)
                index |= {output.name: name for group in shard for output in group.outputs}
            _write_json(temporary / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
            _write_json(temporary / CONFIG, config)
            for file in beside:
                shutil.copyfile(file, temporary / file.name)
                _sync(temporary / file.name)
            if manifest is not None:
                files = {path.name: file_facts(path) for path in temporary.iterdir() if path.name != OWNER}
                write_manifest(temporary, files, dict(manifest))
            (temporary / OWNER).unlink()
            sync_directory(temporary)
            _rename(temporary, target)
    except OSError as error:
        raise HuggingFaceError(f"{target} cannot be written: {error.strerror or error}") from error
    return total


def make_room(target: Path, need: int) -> None:
    """Raises HuggingFaceError where `target` exists, is being written, or its disk has not `need` bytes free, less what
    killed processes left beside it, which is removed."""
    _must_not_exist(target)
    if (living := remove_left_behind(target)) is not None:
        raise HuggingFaceError(
            f"{target} is being written by another process, in {living}; wait for it, or give another directory"
        )
    place = next(place for place in (target.parent.absolute(), *target.parent.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise HuggingFaceError(
            f"{target}: the disk is too small: {need / 1e9:,.3f} GB needed, {free / 1e9:,.3f} GB free in {place}"
        )


def _must_not_exist(target: Path) -> None:
    if os.path.lexists(target):
        raise HuggingFaceError(f"{target} exists; give a directory that does not, or remove it")


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        _must_not_exist(target)  # another process was faster
        raise
    sync_directory(target.parent)


def _shards(groups: Sequence[Group], most: int) -> list[list[Group]]:
    """Runs of groups for one file each."""
    shards: list[list[Group]] = []
    size = 0
    for group in groups:
        if not shards or size + group.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(group)
        size += group.nbytes
    return shards


def _write_shard(path: Path, groups: Sequence[Group], wrote: Callable[[int], None]) -> None:
    outputs = [output for group in groups for output in group.outputs]
    # Wide dtypes first: readers view the bytes as numbers in place, which needs numbers of 4 bytes at multiples of 4.
    ordered = sorted(outputs, key=lambda output: -DTYPES[output.dtype].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for output in ordered:
        header[output.name] = {
            "dtype": output.dtype, "shape": list(output.shape), "data_offsets": [end, end + output.nbytes],
        }  # fmt: skip
        end += output.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    starts = {output.name: 8 + len(text) + header[output.name]["data_offsets"][0] for output in ordered}
    with open(path, "wb", buffering=0) as file:
        _write_all(file.fileno(), struct.pack("<Q", len(text)) + text, 0)
        for group in groups:
            for output, tensor in zip(group.outputs, group.make(), strict=True):
                assert tensor.dtype == DTYPES[output.dtype], output.name
                assert tensor.shape == output.shape, output.name
                _write_all(file.fileno(), bytes_of(tensor.contiguous()), starts[output.name])
            wrote(group.nbytes)
        os.fsync(file.fileno())


def _write_all(file: int, data: bytes | memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], start + done)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
