"""Parts of the tensors of a checkpoint, whatever layout of ranks wrote it, read from its files without the rest.

torch.distributed.checkpoint loads a stored chunk whole to give a part of it, and a chunk of experts can be gigabytes.
Each chunk is what `torch.save` makes of a tensor, at an offset of a file; `torch.load` onto meta tells where in there
the numbers begin, and they are read from there.
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
from trainer.checkpoint.store import CheckpointError
from trainer.weights.hf_files import HuggingFaceError, StoredTensor
from trainer.weights.hf_read import DTYPES, read_box
from trainer.weights.map import Box, overlap

_SPELLING = {dtype: name for name, dtype in DTYPES.items()}


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
        self._opened: dict[tuple[str, tuple[int, ...]], StoredTensor] = {}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a whole tensor; None where the checkpoint has none of this name."""
        return tuple(self.tensors[name].size) if name in self.tensors else None

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].properties.dtype

    def read(self, name: str, box: Box) -> Tensor:
        """A part of a tensor, in its dtype. Raises CheckpointError or OSError."""
        facts = self.tensors[name]
        values = torch.empty([part.stop - part.start for part in box], dtype=facts.properties.dtype)
        missing = values.numel()
        for chunk in facts.chunks:
            held = tuple(slice(o, o + size) for o, size in zip(chunk.offsets, chunk.sizes, strict=True))
            both = overlap(box, held) if box else ()
            if both is None:
                continue
            try:
                found = read_box(self._chunk(name, chunk), _within(both, held))
            except HuggingFaceError as error:  # one reader for both; this file is of no such directory
                raise CheckpointError(str(error)) from error
            values[_within(both, box)] = found
            missing -= found.numel()
        if missing:
            raise CheckpointError(f"{self.path}: {name} is not stored in full")
        return values

    def compare_one(self) -> None:
        """Read the smallest matrix here and by torch.distributed.checkpoint: raises CheckpointError if they differ."""
        name = min((name for name, facts in self.tensors.items() if len(facts.size) > 1), key=self._elements)
        shape = self.tensors[name].size
        here = self.read(name, tuple(slice(0, size) for size in shape))
        whole = {name: torch.empty(shape, dtype=here.dtype)}
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that this is one process alone
                dcp.load(whole, storage_reader=dcp.FileSystemReader(self.path), no_dist=True)
        except CheckpointException:  # a BaseException of DCP, with a traceback as its text
            raise CheckpointError(
                f"{self.path}: torch {torch.__version__} cannot load {name}; use torch 2.13"
            ) from None
        if not torch.equal(here.view(torch.uint8), whole[name].view(torch.uint8)):
            raise CheckpointError(
                f"{self.path}: torch {torch.__version__} reads other numbers of {name} than are read here in parts; "
                "use torch 2.13"
            )

    def _elements(self, name: str) -> int:
        return prod(self.tensors[name].size)

    def _chunk(self, name: str, chunk: ChunkStorageMetadata) -> StoredTensor:
        key = (name, tuple(chunk.offsets))
        if key not in self._opened:
            place = self._places[MetadataIndex(name, chunk.offsets)]
            file = self.path / place.relative_path
            with open(file, "rb") as stream:
                part: Any = _Part(stream, place.offset, place.length)
                tensor = torch.load(part, map_location="meta", weights_only=True)
            if not tensor.is_contiguous() or tuple(tensor.shape) != tuple(chunk.sizes):
                raise CheckpointError(f"{file}: {name} is stored in a way that cannot be read in parts")
            begin = checkpoint_offset(tensor)  # `compare_one` detects a torch that means something else by it
            if begin is None:
                raise CheckpointError(
                    f"{file}: torch {torch.__version__} does not tell where {name} begins in it, so that no part of it "
                    "can be read; use torch 2.13"
                )
            start = place.offset + begin
            start += tensor.storage_offset() * tensor.itemsize
            shape = tuple(tensor.shape)
            nbytes = prod(shape) * tensor.itemsize
            self._opened[key] = StoredTensor(name, _SPELLING[tensor.dtype], shape, file, start, nbytes)
        return self._opened[key]


class _Part(io.RawIOBase):
    """A part of an open file as a file of its own, for `torch.load`."""

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


def _within(part: Box, outer: Box) -> Box:
    """`part` of a tensor in the coordinates of `outer`."""
    return tuple(slice(p.start - o.start, p.stop - o.start) for p, o in zip(part, outer, strict=True))
