"""The processes of one run: who they are, what they agree on, and plain data parallelism.

A run of one process has no process group at all: every call below then returns at once with the obvious answer, so
that the training loop is written once. Under torchrun the default group carries tensors (NCCL on CUDA, gloo on CPU)
and two gloo groups carry Python objects: `control` for the loop and `background` for the checkpoint writer, whose
thread must never interleave its collectives with the loop's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

# Large enough to reach the bandwidth of a link, small enough that the copies do not double the gradients' memory.
BUCKET_BYTES = 64 << 20


class WorldError(RuntimeError):
    """The processes of this run cannot work together; the message says which and what would work."""


@dataclass(frozen=True)
class World:
    """Rank and size of this process, its device, and its groups (None where the process is alone)."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None

    def gather(self, value: T, *, background: bool = False) -> list[T]:
        """Every rank's `value` (picklable), in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.background if background else self.control)
        return values  # type: ignore[return-value]  # every slot is filled when the call returns

    def broadcast(self, value: T) -> T:
        """Rank 0's `value` (picklable) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def agree(self, what: str, value: str) -> None:
        """Raise `WorldError` on every rank, naming the ranks that differ, unless all hold the same `value`."""
        values = self.gather(value)
        others = [rank for rank, theirs in enumerate(values) if theirs != values[0]]
        if others:
            found = ", ".join(f"rank {rank}: {values[rank]}" for rank in (0, *others[:3]))
            named = ", ".join(map(str, others[:16])) + (", ..." if len(others) > 16 else "")
            raise WorldError(
                f"rank(s) {named} of {self.size} have another {what} than rank 0 ({found}); start every rank with the "
                "same command, code and files"
            )

    def sum_counts(self, *counts: int) -> list[int]:
        """The sums over all ranks of a few host integers. No device is involved, so nothing waits for the GPU."""
        if self.size == 1:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all ranks in place, on its device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum (never average: the loss is already divided by the global token count) every gradient over all ranks.

        Gradients travel in flat buckets of one dtype, so that small tensors do not pay a collective each.
        """
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            dist.all_reduce(flat)
            pieces = flat.split([grad.numel() for grad in bucket])
            torch._foreach_copy_(bucket, [piece.view_as(grad) for piece, grad in zip(pieces, bucket, strict=True)])

    def broadcast_module(self, module: nn.Module) -> None:
        """Give every rank rank 0's parameters and buffers, whatever its own initialisation came to."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def close(self) -> None:
        """Leave the process group. Safe to call twice and after an error."""
        if dist.is_initialized():  # a process on its own may have made a group for an engine that needs one
            dist.destroy_process_group()


def start_world(device: str = "auto", timeout_s: float = 600.0) -> World:
    """Join the run that torchrun's environment describes, or stand alone without one.

    `device` is "auto" (CUDA if there), "cpu" or "cuda". `timeout_s` bounds every collective, in seconds.
    Raises `WorldError` where the machine cannot give what is asked for.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and not torch.cuda.is_available():
        raise WorldError("train.device=cuda, but torch finds no CUDA device here; use train.device=cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        where = torch.device("cpu")
    else:
        if local_rank >= torch.cuda.device_count():
            raise WorldError(
                f"local rank {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}; use "
                f"torchrun --nproc-per-node {torch.cuda.device_count()} or train.device=cpu"
            )
        where = torch.device("cuda", local_rank)
        torch.cuda.set_device(where)
    if size == 1:
        return World(device=where)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise WorldError(
            f"WORLD_SIZE={size} is set without {', '.join(missing)}; start the run with torchrun or unset WORLD_SIZE"
        )
    timeout = timedelta(seconds=timeout_s)
    if where.type == "cuda":
        dist.init_process_group("nccl", timeout=timeout, device_id=where)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    return World(
        device=where,
        rank=dist.get_rank(),
        size=size,
        control=dist.new_group(backend="gloo", timeout=timeout),
        background=dist.new_group(backend="gloo", timeout=timeout),
    )


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        # A parameter that no token of this rank reached still takes part, or the ranks' buckets would not line up.
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grad = parameter.grad
        if bucket and (size + grad.nbytes > BUCKET_BYTES or grad.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(grad)
        size += grad.nbytes
    if bucket:
        yield bucket
