"""The processes of one run: rank and size, what they agree on, and plain data parallelism.

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
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.environment import Environment, read_environment
from parallel.errors import UserError
from parallel.health.watch import BACKGROUND, PeerLost, Watch
from parallel.torch_private import foreach_copy, process_groups, set_timeout

T = TypeVar("T")

# Large enough to reach the bandwidth of a link, small enough that the copies do not double the gradients' memory.
BUCKET_BYTES = 64 << 20

# Ranks may join this late even if `timeout_s` is shorter: a rank that still imports or compiles does not hang.
JOIN_S = 60.0

# A collective may wait this many times `timeout_s` for a slow peer; the watch ends a run that makes no progress.
PATIENCE = 10


class WorldError(UserError):
    """The processes of this run cannot work together; the text says which and what would work."""


@dataclass(frozen=True)
class World:
    """Rank and size of this process, its device, and its groups (None if it is the only process).

    Also stands for some of a run's ranks, such as those of a pipeline stage (see `within`): rank and size are then
    those in `group`, which carries tensors; None is the default group.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None
    watch: Watch = field(default_factory=Watch)
    group: dist.ProcessGroup | None = None

    def within(self, group: dist.ProcessGroup | None, control: dist.ProcessGroup | None) -> World:
        """The ranks of a group that this rank is in: `group` for tensors, `control` the same ranks over gloo. None for
        this rank alone. It has no background group."""
        if group is None:
            return World(self.device, watch=self.watch)
        return World(self.device, group.rank(), group.size(), control, None, self.watch, group)

    def gather(self, value: T, *, background: bool = False) -> list[T]:
        """Every rank's `value` (picklable), in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.background if background else self.control)
        return cast(list[T], values)  # every slot is filled when the call returns

    def broadcast(self, value: T) -> T:
        """Rank 0's `value` (picklable) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.control, group_src=0)
        return box[0]

    def agree(self, what: str, value: str) -> None:
        """Raise `WorldError` on every rank, naming the ranks that differ, unless all hold the same `value`."""
        values = self.gather(value)
        others = [rank for rank, theirs in enumerate(values) if theirs != values[0]]
        if others:
            found = ", ".join(f"rank {rank}: {values[rank]}" for rank in (0, *others[:3]))
            named = ", ".join(map(str, others[:16])) + (", ..." if len(others) > 16 else "")
            raise WorldError(
                f"the {what} of rank {named} of {self.size} differs from that of rank 0 ({found}); start every rank "
                "with the same command, code and files",
                where=what,
                value={rank: values[rank] for rank in others},
                allowed=(values[0],),
            )

    def sum_counts(self, **counts: int) -> dict[str, int]:
        """The sums over all ranks of a few host integers, by name; every rank gives the same names in the same order.
        No device is involved, so nothing waits for the GPU."""
        return dict(zip(counts, self._sum_integers(list(counts.values())), strict=True))

    def gather_count(self, count: int) -> list[int]:
        """Every rank's `count`, in rank order. No device is involved, so nothing waits for the GPU."""
        return self._sum_integers([count if rank == self.rank else 0 for rank in range(self.size)])

    def _sum_integers(self, integers: list[int]) -> list[int]:
        if self.size == 1:
            return integers
        total = torch.tensor(integers, dtype=torch.int64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all ranks in place, on its device."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def max_tensor(self, tensor: Tensor) -> Tensor:
        """`tensor` replaced in place by the largest values of all ranks, element by element, on its device."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum (never average: the loss is already divided by the global token count) every gradient over all ranks.

        Gradients travel in flat buckets of one dtype, so that small tensors do not cost a collective each.
        """
        if self.size == 1:
            return
        for bucket in _buckets(parameters):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            dist.all_reduce(flat, group=self.group)
            pieces = flat.split([grad.numel() for grad in bucket])
            foreach_copy(bucket, [piece.view_as(grad) for piece, grad in zip(pieces, bucket, strict=True)])

    def broadcast_module(self, module: nn.Module, own: Iterable[Tensor] = ()) -> None:
        """Give every rank rank 0's parameters and buffers, except those that are spread over ranks. Processors of
        different kinds may draw different random numbers. own: buffers with another part on every rank."""
        if self.size > 1:
            parts = set(map(id, own))
            for tensor in (*module.parameters(), *module.buffers()):
                if not isinstance(tensor, DTensor) and id(tensor) not in parts:
                    self.broadcast_tensor(tensor)

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Give every rank rank 0's values, in place."""
        if self.size > 1:
            dist.broadcast(tensor.detach(), group=self.group, group_src=0)

    def extend_timeouts(self) -> None:
        """Give the collectives of every existing group the timeout of this object's own groups.

        For groups made elsewhere, such as those of a mesh: torch's own limit of 10 minutes would end the process before
        the watch can report why.
        """
        for group in process_groups():
            set_timeout(group, timedelta(seconds=PATIENCE * self.watch.timeout_s))

    def close(self) -> None:
        """Leave the process group. May be called twice and after an error."""
        if self.watch.failed and self.device.type == "cuda":
            return  # NCCL would wait for collectives that never end; the watch ends the process
        if dist.is_initialized():  # a single process may have made a group for an engine that needs one
            dist.destroy_process_group()
        self.watch.close()


def start_world(device: str = "auto", timeout_s: float = 600.0) -> World:
    """Join the run that torchrun's environment describes; without one, this process is the whole run.

    device: "auto" (CUDA if available), "cpu" or "cuda". timeout_s: seconds that all ranks together may spend without
    progress, from the first `watch.at` on; they may take that long to join, or `JOIN_S` if that is more.
    Raises `WorldError` if the machine lacks what is requested, `PeerLost` if other ranks do not join.
    """
    try:
        given = read_environment()
    except UserError as error:
        raise WorldError(error.faults) from None
    size, rank, local_rank = given.world_size, given.rank, given.local_rank
    if device == "cuda" and not torch.cuda.is_available():
        raise WorldError(
            "train.device=cuda, but torch finds no CUDA device on this machine; use train.device=cpu or auto",
            where="train.device",
            value="cuda",
            allowed=("cpu", "auto"),
        )
    if device == "cpu" or not torch.cuda.is_available():
        own_device = torch.device("cpu")
    else:
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise WorldError(
                f"there is no GPU for local rank {local_rank}: this machine has {gpus}; use torchrun --nproc-per-node "
                f"{gpus} or train.device=cpu",
                where="LOCAL_RANK",
                value=local_rank,
                allowed=f"--nproc-per-node {gpus} or train.device=cpu",
            )
        own_device = torch.device("cuda", local_rank)
        torch.cuda.set_device(own_device)
    if size == 1:
        return World(device=own_device)
    timeout = timedelta(seconds=timeout_s)
    join_s = max(JOIN_S, timeout_s)
    try:
        store = _rendezvous(given, timedelta(seconds=join_s))
    except dist.DistError as error:
        address = f"{given.address}:{given.port}"
        raise WorldError(
            f"rank {rank} could not reach MASTER_ADDR:MASTER_PORT={address} within {join_s:g} s; the launcher of rank "
            f"0 must run there ({str(error).splitlines()[0]}). A larger parallel.timeout_s waits longer",
            where="MASTER_ADDR:MASTER_PORT",
            value=address,
            allowed="the address of rank 0's launcher",
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the store may outlive an attempt
    watch = Watch(rank, size, timeout_s, dist.PrefixStore(f"watch-{attempt}", store.clone()), join_s)
    watch.join()
    watch.at("start: process groups")
    backend, device_id = ("nccl", own_device) if own_device.type == "cuda" else ("gloo", None)
    patience = PATIENCE * timeout
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience, device_id=device_id)
        control = dist.new_group(backend="gloo", timeout=patience)
        background = dist.new_group(backend="gloo", timeout=patience, group_desc=BACKGROUND)
    except Exception as error:
        first = watch.report_failure(error)
        watch.close()
        if first:
            raise
        raise PeerLost("a rank was lost while the process groups were built") from error
    watch.at("")
    return World(device=own_device, rank=rank, size=size, control=control, background=background, watch=watch)


def _rendezvous(given: Environment, timeout: timedelta) -> Any:
    """The store that the ranks meet in. Does not wait for them: `Watch.join` does, and can name the missing ones."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return next(iter(dist.rendezvous("env://", timeout=timeout)))[0]
    # Without torchrun rank 0 holds the store. torch's own way would wait, and report only how many ranks came.
    return dist.TCPStore(
        given.address,
        given.port,
        given.world_size,
        is_master=given.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        # A parameter that no token of this rank reached still takes part, or the ranks' buckets would not match.
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
