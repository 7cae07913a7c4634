"""Parts of the tensors of a checkpoint, read from its files whatever layout of ranks wrote it.

torch.distributed.checkpoint loads a complete stored chunk to return a part of it, and a chunk of experts can be
gigabytes. Each chunk is a tensor written by `torch.save` at an offset of a file; `torch.load` onto the meta device
gives the position of its bytes, and only the bytes of the part are read.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from parallel.torch_private import checkpoint_offset
from trainer.checkpoint.errors import CheckpointError
from trainer.storage.boxes import Box, StoredTensor, UnreadableError, full_box, overlap, read_box, relative_to

TESTED = "torch 2.13"
INTACT = "a checkpoint whose files are intact"


class StoredState:
    """The tensors of one checkpoint directory, which must have been verified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = dcp.FileSystemReader(path).read_metadata()
        self._places: Mapping[MetadataIndex, Any] = metadata.storage_data or {}
        self.tensors: dict[str, TensorStorageMetadata] = {
            name: facts
            for name, facts in metadata.state_dict_metadata.items()
            if isinstance(facts, TensorStorageMetadata)
        }
        self._chunks: dict[tuple[str, tuple[int, ...]], StoredTensor] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The global shape of a tensor; None if the checkpoint has no tensor of this name."""
        return tuple(self.tensors[name].size) if name in self.tensors else None

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].properties.dtype

    def read(self, name: str, box: Box) -> Tensor:
        """Read a part of a tensor, in its dtype. Raises CheckpointError or OSError."""
        facts = self.tensors[name]
        dtype = facts.properties.dtype
        values = torch.empty([part.stop - part.start for part in box], dtype=dtype)
        missing = values.numel()
        for chunk in facts.chunks:
            held = tuple(slice(o, o + size) for o, size in zip(chunk.offsets, chunk.sizes, strict=True))
            both = overlap(box, held) if box else ()
            if both is None:
                continue
            try:
                words = read_box(self._locate(name, chunk), relative_to(both, held), dtype.itemsize)
            except UnreadableError as error:
                raise CheckpointError(str(error), where=str(error.file), value=error.name, allowed=INTACT) from error
            values[relative_to(both, box)] = torch.from_numpy(words).view(dtype)
            missing -= words.size
        if missing:
            text = f"{self.path}: {name} is not stored in full"
            raise CheckpointError(text, where=str(self.path), value=name, allowed=INTACT)
        return values

    def compare_one(self) -> None:
        """Read the smallest matrix here and by torch.distributed.checkpoint. Raises CheckpointError if they differ."""
        name = min((name for name, facts in self.tensors.items() if len(facts.size) > 1), key=self._elements)
        shape = self.tensors[name].size
        here = self.read(name, full_box(shape))
        loaded = {name: torch.empty(shape, dtype=here.dtype)}
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # it runs in one process
                dcp.load(loaded, storage_reader=dcp.FileSystemReader(self.path), no_dist=True)
        except CheckpointException:  # a BaseException of DCP, with a traceback as its text
            raise _wrong_torch(self.path, f"cannot load {name}") from None
        if not torch.equal(here.view(torch.uint8), loaded[name].view(torch.uint8)):
            raise _wrong_torch(self.path, f"loads values of {name} that differ from those of a partial read")

    def _elements(self, name: str) -> int:
        return prod(self.tensors[name].size)

    def _locate(self, name: str, chunk: ChunkStorageMetadata) -> StoredTensor:
        key = (name, tuple(chunk.offsets))
        if key not in self._chunks:
            place = self._places[MetadataIndex(name, chunk.offsets)]
            file = self.path / place.relative_path
            with open(file, "rb") as stream:
                part: Any = _Part(stream, place.offset, place.length)
                tensor = torch.load(part, map_location="meta", weights_only=True)
            if not tensor.is_contiguous() or tuple(tensor.shape) != tuple(chunk.sizes):
                raise CheckpointError(
                    f"{file}: {name} is stored in a form that cannot be read in parts",
                    where=str(file),
                    value=name,
                    allowed="a checkpoint that Octavo wrote",
                )
            offset = checkpoint_offset(tensor)  # `compare_one` detects a torch that means something else by it
            if offset is None:
                raise _wrong_torch(file, f"does not give the position of {name}, so no part of it can be read")
            start = place.offset + offset + tensor.storage_offset() * tensor.itemsize
            shape = tuple(tensor.shape)
            self._chunks[key] = StoredTensor(name, str(tensor.dtype), shape, file, start, tensor.nbytes)
        return self._chunks[key]


def _wrong_torch(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: torch {torch.__version__} {problem}; use {TESTED}",
        where=str(path), value=torch.__version__, allowed=TESTED,
    )  # fmt: skip


class _Part(io.RawIOBase):
    """A part of an open file, presented to `torch.load` as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self.file, self.start, self.length, self.at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        return self.at

    def readinto(self, buffer: Any, /) -> int:
        wanted = memoryview(buffer)[: max(0, self.length - self.at)]
        count = os.preadv(self.file.fileno(), [wanted], self.start + self.at)
        self.at += count
        return count
