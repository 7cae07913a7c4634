"""A stream of tensors into a new Hugging Face directory: one bundle of tensors in memory at a time.

Everything is known before the first byte: names, dtypes, shapes and so the size of every file. The directory is written
beside its place, each file synced, and takes its name last: what bears it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.storage.atomic import TargetExistsError, atomic_directory, remove_unfinished, sync
from trainer.storage.boxes import StoredTensor, full_box
from trainer.storage.hashed_file import HashedFile
from trainer.storage.manifest import CHECKPOINT
from trainer.storage.space import free_space
from trainer.weights.beside.side_files import total_size
from trainer.weights.hf_files import CONFIG, INDEX, HuggingFaceError, byte_count
from trainer.weights.hf_read import DTYPES, bytes_of, read_tensor

SHARD_BYTES = 5_000_000_000
COPIED = 16 << 20  # bytes of a tensor that is copied that are in memory at a time


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written."""

    name: str
    dtype: str  # a key of `read.DTYPES`
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return byte_count(self.dtype, self.shape)


@dataclass(frozen=True)
class Bundle:
    """Tensors that are made together.

    `make` gives them in the order of `outputs`, each whole or in runs of its rows; what it gave last may be written
    over by what it gives next.
    """

    outputs: tuple[OutputTensor, ...]
    make: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)


@dataclass(frozen=True)
class Shard:
    """A file to be written."""

    name: str
    bundles: tuple[Bundle, ...]

    @cached_property
    def outputs(self) -> list[OutputTensor]:
        """As they are made."""
        return [output for bundle in self.bundles for output in bundle.outputs]

    @cached_property
    def ordered(self) -> list[OutputTensor]:
        """The outputs in file order: production order, so that the file is written from front to back, unless that
        would misalign a tensor; then wide dtypes first. Readers view the bytes as numbers in place."""
        end = 0
        for output in self.outputs:
            if end % DTYPES[output.dtype].itemsize:
                return sorted(self.outputs, key=lambda output: -DTYPES[output.dtype].itemsize)
            end += output.nbytes
        return self.outputs

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(bundle.nbytes for bundle in self.bundles)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head()) + self.nbytes

    def head(self) -> bytes:
        """The header, which precedes the tensors' bytes."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for output in self.ordered:
            header[output.name] = {
                "dtype": output.dtype, "shape": list(output.shape), "data_offsets": [end, end + output.nbytes],
            }  # fmt: skip
            end += output.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def copy_of(tensor: StoredTensor) -> Bundle:
    """A tensor of another directory, byte for byte, a block of its rows in memory at a time."""

    def blocks() -> Iterator[Tensor]:
        box = full_box(tensor.shape)
        rows = max(1, COPIED * box[0].stop // max(1, tensor.nbytes)) if box else 0
        if not box or rows >= box[0].stop:
            yield read_tensor(tensor, box)
            return
        for first in range(0, box[0].stop, rows):
            yield read_tensor(tensor, (slice(first, min(first + rows, box[0].stop)), *box[1:]))

    return Bundle((OutputTensor(tensor.name, tensor.dtype, tensor.shape),), blocks)


def write_directory(
    target: Path,
    bundles: Sequence[Bundle],
    config: Mapping[str, Any],
    beside: Mapping[str, Path | bytes] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    manifest: Mapping[str, Any] | None = None,
    wrote: Callable[[int], None] = lambda nbytes: None,
) -> int:
    """Make `target` with the tensors of `bundles`, an index of them, config.json and the files `beside`.

    Args:
        beside: path in `target` -> the file to copy there, or its content.
        shard_bytes: no file is larger, unless a single bundle is.
        manifest: facts of a manifest.json with size and SHA-256 of every file; None: no manifest.
        wrote: called with the bytes of each bundle once they are written.
    Returns: the bytes of all tensors.
    Raises: HuggingFaceError where `target` exists, the disk is too small (before the first byte is written) or cannot
        be written; nothing is left behind.
    """
    beside = beside or {}
    total = sum(bundle.nbytes for bundle in bundles)
    try:
        make_room(target, total + total_size(beside))
        with atomic_directory(target) as temporary:
            shards = split_into_shards(bundles, shard_bytes)
            written = {shard.name: write_shard(temporary / shard.name, shard, wrote) for shard in shards}
            complete(temporary, shards, written, config, beside, manifest)
    except TargetExistsError as error:
        raise already_exists(error.path) from None
    except OSError as error:
        raise HuggingFaceError(
            f"{target} cannot be written: {error.strerror or error}",
            where=str(target),
            value=error.strerror,
            allowed="a path that can be written, with enough space",
        ) from error
    return total


def complete(
    directory: Path,
    shards: Sequence[Shard],
    written: Mapping[str, dict[str, Any]],
    config: Mapping[str, Any],
    beside: Mapping[str, Path | bytes],
    manifest: Mapping[str, Any] | None,
) -> None:
    """Put what goes with the shards beside them. `written`: file name -> `Manifest.file_facts`. Raises OSError."""
    index = {output.name: shard.name for shard in shards for output in shard.outputs}
    total = sum(shard.nbytes for shard in shards)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    write_json(directory / CONFIG, config)
    names = [INDEX, CONFIG]
    for name, content in beside.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (directory / name).write_bytes(content)
        else:
            shutil.copyfile(content, directory / name)
        sync(directory / name)
        names.append(name)
    for folder in {folder for name in beside for folder in Path(name).parents if folder.name}:
        sync(directory / folder)
    if manifest is not None:
        facts = {name: CHECKPOINT.file_facts(directory / name) for name in names}
        CHECKPOINT.write(directory, manifest, {**written, **facts})


def make_room(target: Path, need: int) -> None:
    """Raises HuggingFaceError where `target` exists, is being written, or its disk has not `need` bytes free, less what
    killed processes left beside it, which is removed."""
    must_not_exist(target)
    if (living := remove_unfinished(target)) is not None:
        raise HuggingFaceError(
            f"{target} is being written by another process, in {living}; wait for it, or give another directory",
            where=str(target),
            value=str(living),
            allowed="another directory",
        )
    require_space(target, need)


def require_space(target: Path, need: int) -> None:
    """Raises HuggingFaceError where the disk that `target` is to be on has not `need` bytes free."""
    place, free = free_space(target.parent)
    if free < need:
        raise HuggingFaceError(
            f"{target}: not enough disk space: {need / 1e9:,.3f} GB needed, {free / 1e9:,.3f} GB free in {place}",
            where=str(target),
            value=free,
            allowed=need,
        )


def must_not_exist(target: Path) -> None:
    """Raises HuggingFaceError where `target` exists, be it as a link to nowhere."""
    if os.path.lexists(target):
        raise already_exists(target)


def already_exists(target: Path) -> HuggingFaceError:
    """The error for a directory to write that exists."""
    return HuggingFaceError(
        f"{target} exists; give a directory that does not, or remove it",
        where=str(target),
        allowed="a directory that does not exist",
    )


def split_into_shards(bundles: Sequence[Bundle], most: int) -> list[Shard]:
    """Files of runs of bundles, with tensors of at most `most` bytes, but for a bundle that has more by itself."""
    runs: list[list[Bundle]] = []
    size = 0
    for bundle in bundles:
        if not runs or size + bundle.nbytes > most:
            runs.append([])
            size = 0
        runs[-1].append(bundle)
        size += bundle.nbytes
    return [Shard(f"model-{number:05}-of-{len(runs):05}.safetensors", tuple(run)) for number, run in enumerate(runs, 1)]


def write_shard(path: Path, shard: Shard, wrote: Callable[[int], None]) -> dict[str, Any]:
    """Make a file's tensors and write them, synced. `wrote` as of `write_directory`.

    Returns what `Manifest.file_facts` would. Raises OSError, and what the bundles raise.
    """
    if shard.ordered is not shard.outputs:
        return _write_here_and_there(path, shard, wrote)
    with HashedFile(path) as file:
        file.write(shard.head())
        for bundle in shard.bundles:
            for _, tensor in _checked_tensors(bundle):
                file.write(bytes_of(tensor))
            wrote(bundle.nbytes)
        return file.finish()


def _write_here_and_there(path: Path, shard: Shard, wrote: Callable[[int], None]) -> dict[str, Any]:
    head = shard.head()
    starts, end = {}, len(head)
    for output in shard.ordered:
        starts[output.name] = end
        end += output.nbytes
    with open(path, "wb", buffering=0) as file:
        _write_all(file.fileno(), head, 0)
        for bundle in shard.bundles:
            for output, tensor in _checked_tensors(bundle):
                _write_all(file.fileno(), bytes_of(tensor), starts[output.name])
                starts[output.name] += tensor.nbytes
            wrote(bundle.nbytes)
    sync(path)
    return CHECKPOINT.file_facts(path)


def _checked_tensors(bundle: Bundle) -> Iterator[tuple[OutputTensor, Tensor]]:
    """The tensors of a bundle, or runs of their rows, each with the output that it is (of)."""
    made = iter(bundle.make())
    for output in bundle.outputs:
        rows = 0
        while True:
            tensor = next(made)
            assert tensor.dtype == DTYPES[output.dtype], output.name
            assert tensor.shape[1:] == output.shape[1:], output.name
            yield output, tensor.contiguous()
            if not output.shape:
                break
            rows += tensor.shape[0]
            if rows >= output.shape[0]:
                assert rows == output.shape[0], output.name
                break
    assert next(made, None) is None, bundle.outputs[-1].name


def _write_all(file: int, data: bytes | memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], start + done)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A synced file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(path)
