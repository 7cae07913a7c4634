"""A rank's piece of a tensor, in a form that torch.distributed.checkpoint saves, loads and reshards.

DTensors cut a dimension into equal parts; ZeRO cuts a flattened parameter at the ends of its partitions, anywhere
inside a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from parallel.torch_private import wrapper_tensor


class Fragment(torch.Tensor):
    """Elements [start, start + len(part)) of a flattened tensor of `shape`; `part` [n], possibly empty, is this rank's
    piece, whose memory it shares. For checkpoints only: it has the tensor's shape and no arithmetic."""

    part: Tensor
    start: int

    @staticmethod
    def __new__(cls, part: Tensor, start: Any, shape: Sequence[int]) -> Fragment:
        whole = wrapper_tensor(cls, shape, like=part)
        whole.part, whole.start = part, start
        return whole

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.new_empty.default:  # staging makes one, then copies the attributes
            whole: Fragment = args[0]
            return cls(whole.part.new_empty(0, **kwargs), whole.start, whole.shape)
        raise NotImplementedError(f"{func} of a Fragment; use its part")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Fragment({self.start}:{self.start + len(self.part)} of {self.numel()})"

    # The protocol of torch.distributed.checkpoint's planners.

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
            for offsets, sizes in boxes(self.start, self.start + len(self.part), tuple(self.shape))
        ]

    def __create_write_items__(self, name: str, whole: Tensor) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=whole.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        offset, shape = tuple(index.offset), tuple(self.shape)
        sizes = dict(boxes(self.start, self.start + len(self.part), shape))[offset]
        first = sum(at * prod(shape[dim + 1 :]) for dim, at in enumerate(offset)) - self.start
        return self.part.narrow(0, first, prod(sizes)).view(sizes)


def boxes(start: int, end: int, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The (offsets, sizes) of boxes that are contiguous in memory and together are elements [start, end) of a flattened
    tensor of `shape`, in order: at most 2 * len(shape) - 1 of them."""
    if start >= end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = prod(shape[1:])
    first, last = -(-start // row), end // row
    if first > last:  # inside one row
        yield from _in_row(last, start, end, shape)
        return
    yield from _in_row(first - 1, start, first * row, shape)
    if first < last:
        yield (first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:])
    yield from _in_row(last, last * row, end, shape)


def _in_row(
    number: int, start: int, end: int, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    before = number * prod(shape[1:])
    for offsets, sizes in boxes(start - before, end - before, shape[1:]):
        yield (number, *offsets), (1, *sizes)


class Region(Fragment):
    """A box of a tensor of `shape`: `part`, of as many dimensions, is this rank's piece, at the offsets `start`. As a
    shard of a DTensor, but `part` may be on another device than the mesh."""

    start: tuple[int, ...]  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Region({list(self.part.shape)} at {list(self.start)} of {list(self.shape)})"

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        if not self.part.numel():
            return []
        return [ChunkStorageMetadata(offsets=torch.Size(self.start), sizes=self.part.size())]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset == torch.Size(self.start), f"{index} is not {self}"
        return self.part
