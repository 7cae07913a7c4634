"""Weights on their way to rollout servers: buckets of tensors in one piece of memory each.

A server takes a bucket while the next one is not yet made: at any time one bucket is in memory beside the weights.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

BUCKET_MB = 512


@dataclass(frozen=True)
class Bucket:
    """Tensors of one dtype, one after the other. flat: [sum of numel]. names, shapes: of each."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    flat: Tensor

    @property
    def nbytes(self) -> int:
        return self.flat.nbytes


@dataclass(frozen=True)
class Sync:
    """A transfer of weights. seconds: from the first byte to the last confirmation; making the tensors counts too."""

    version: int
    seconds: float
    nbytes: int
    buckets: int
    tensors: int


class Receiver(Protocol):
    """Takes the buckets of one version: `start_load`, `take` for each bucket, `finish_load`. Each raises RolloutError;
    after that the receiver stays paused until a whole load has succeeded."""

    def start_load(self) -> None: ...
    def take(self, bucket: Bucket) -> None: ...
    def finish_load(self, version: int) -> None: ...


def buckets_of(weights: Iterable[tuple[str, Tensor]], bucket_bytes: int) -> Iterator[Bucket]:
    """Cut a stream of named tensors into buckets of at most `bucket_bytes`, or of one larger tensor.

    A bucket has one dtype and device; a change of either starts the next one. Raises ValueError for a name that comes
    twice and for a tensor without elements.
    """
    waiting = _Waiting()
    seen: set[str] = set()
    for name, tensor in weights:
        if name in seen:
            raise ValueError(f"{name} comes twice among the weights")
        if not tensor.numel():
            raise ValueError(f"{name} has no elements")
        seen.add(name)
        if waiting.names and (not waiting.fits(tensor) or waiting.nbytes + tensor.nbytes > bucket_bytes):
            yield waiting.pour()
            waiting = _Waiting()
        waiting.add(name, tensor)
    if waiting.names:
        yield waiting.pour()


@dataclass
class _Waiting:
    names: list[str] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    nbytes: int = 0

    def fits(self, tensor: Tensor) -> bool:
        return (tensor.dtype, tensor.device) == (self.tensors[0].dtype, self.tensors[0].device)

    def add(self, name: str, tensor: Tensor) -> None:
        self.names.append(name)
        self.tensors.append(tensor.detach())
        self.nbytes += tensor.nbytes

    def pour(self) -> Bucket:
        shapes = tuple(tuple(tensor.shape) for tensor in self.tensors)
        return Bucket(tuple(self.names), shapes, torch.cat([tensor.reshape(-1) for tensor in self.tensors]))


def load_into(
    receivers: Sequence[Receiver], weights: Iterable[tuple[str, Tensor]], version: int, bucket_bytes: int
) -> Sync:
    """Give all receivers the same weights. The version counts for them all, or an error says which one failed."""
    started, sent, count, tensors = time.monotonic(), 0, 0, 0
    for receiver in receivers:
        receiver.start_load()
    for bucket in buckets_of(weights, bucket_bytes):
        for receiver in receivers:
            receiver.take(bucket)
        sent, count, tensors = sent + bucket.nbytes, count + 1, tensors + len(bucket.names)
    for receiver in receivers:
        receiver.finish_load(version)
    return Sync(version, time.monotonic() - started, sent, count, tensors)


def serialized(bucket: Bucket | None) -> str:
    """A bucket as the servers' `flattened_bucket`: base64 of a pickle of metadata and of the memory's handle.

    None: the empty bucket that ends a load. CUDA memory travels as its handle, which another process on the same
    machine opens (the tensor must live until the server has confirmed); memory of the CPU as its bytes, which no
    server with GPUs takes. The metadata are plain objects of Python's own library, so that reading them needs no
    module of ours.
    """
    if bucket is None:
        return _packed({"metadata": []})
    metadata, start = [], 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        numel = torch.Size(shape).numel()
        entry = SimpleNamespace(
            name=name, shape=torch.Size(shape), dtype=bucket.flat.dtype, start_idx=start, end_idx=start + numel,
            numel=numel,
        )  # fmt: skip
        metadata.append(entry)
        start += numel
    return _packed({"metadata": metadata, "flattened_tensor": _handle(bucket.flat)})


def _handle(flat: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """A function and its arguments that make the tensor in the process that reads them."""
    if flat.is_cuda:
        from torch.multiprocessing.reductions import reduce_tensor

        handle: tuple[Any, tuple[Any, ...]] = reduce_tensor(flat)
        return handle
    return partial(torch.frombuffer, dtype=flat.dtype), (bytearray(flat.view(torch.uint8).numpy().tobytes()),)


def _packed(message: dict[str, Any]) -> str:
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(message)
    return base64.b64encode(buffer.getbuffer()).decode()
