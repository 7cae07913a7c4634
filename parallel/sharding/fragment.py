"""A rank's piece of a vector, in a form that torch.distributed.checkpoint saves, loads and reshards.

DTensors cut a dimension into equal parts; ZeRO cuts at the ends of its partitions, anywhere inside a parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from parallel.torch_private import wrapper_tensor


class Fragment(torch.Tensor):
    """Elements [start, start + len(part)) of a vector of `size` elements; `part` [n], possibly empty, is this rank's
    piece, whose memory it shares. For checkpoints only: it has the vector's shape and no arithmetic."""

    part: Tensor
    start: int

    @staticmethod
    def __new__(cls, part: Tensor, start: int, size: int) -> Fragment:
        whole = wrapper_tensor(cls, (size,), like=part)
        whole.part, whole.start = part, start
        return whole

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.new_empty.default:  # staging makes one, then copies the attributes
            vector: Fragment = args[0]
            return cls(vector.part.new_empty(0, **kwargs), vector.start, vector.numel())
        raise NotImplementedError(f"{func} of a Fragment; use its part")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Fragment({self.start}:{self.start + len(self.part)} of {self.numel()})"

    # The protocol of torch.distributed.checkpoint's planners.

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        if not len(self.part):
            return []
        return [ChunkStorageMetadata(offsets=torch.Size([self.start]), sizes=self.part.size())]

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
        assert index.offset == torch.Size([self.start]), f"{index} is not {self}"
        return self.part
