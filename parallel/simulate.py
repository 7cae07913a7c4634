"""Simulate one rank of any layout on one machine: a fake process group, tensors without memory, real sharding.

    with fake_world(512, rank=5) as fake:
        model = ...                             # built and sharded on the meta device by the code of a real run
        with fake, CollectiveLog(axes) as log:
            model.to_empty(device="cpu")        # fake tensors: sizes, strides and storages, no memory
            ...                                 # a step
        rank_bytes(...), log.calls

`CollectiveLog` and `rank_bytes` also read a real run, which is how the simulation is tested.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.memory.sections import Sections
from parallel.sharding.local import local_part
from parallel.torch_private import (
    COLLECTIVES,
    GROUPED_MM,
    FakeTensorMode,
    TorchDispatchMode,
    clear_sharding_cache,
    fake_store,
    group_of_name,
    storage_id,
)

BARRIERS = frozenset({"barrier", "monitored_barrier_"})  # carry no data


@dataclass(frozen=True)
class Collective:
    """One collective as this rank issues it.

    Attributes:
        op: all_gather, reduce_scatter, all_reduce, all_to_all, send, receive, or torch's own name (broadcast_, ...).
        axis: name of the group, as given to `CollectiveLog`. ranks: its size.
        nbytes: size of the whole tensor: the result of an all-gather, the input of a reduce-scatter or all-reduce, the
            larger side of an all-to-all.
        where: "backward" if autograd issued it (recomputed forward passes included), otherwise the section of the log.
        micro_batch: number of the one whose forward or backward pass issued it; None outside of a pass.
    """

    op: str
    axis: str
    ranks: int
    nbytes: int
    where: str
    micro_batch: int | None = None

    @property
    def sent(self) -> int:
        """Bytes that leave this rank in an optimal algorithm such as a ring: (n-1)/n of `nbytes`, and twice that for an
        all-reduce; none for a receive."""
        parts = {"all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "all_reduce": 2, "receive": 0}.get(self.op)
        return self.nbytes if parts is None else parts * self.nbytes * (self.ranks - 1) // self.ranks


class CollectiveLog(Sections):
    """Context that records in `calls` every collective of tensors that this thread issues, those of FSDP and DTensor
    included.

    Args: axes: names and their process groups. A group with several names is called a/b; a group without a name is
        called by torch's description.
    """

    def __init__(self, axes: Iterable[tuple[str, dist.ProcessGroup]]) -> None:
        super().__init__()
        self.calls: list[Collective] = []
        self.micro_batch: int | None = None
        self.axes: dict[str, str] = {}  # name of a group -> name of the axis
        for axis, group in axes:
            others = self.axes.get(group.group_name)
            self.axes[group.group_name] = f"{others}/{axis}" if others else axis

    @contextmanager
    def numbered(self, model: nn.Module) -> Iterator[None]:
        """Passes of a whole model, which each micro-batch calls once."""
        numbers = itertools.count()

        def next_one(*_: Any) -> None:
            self.micro_batch = next(numbers)

        handle = model.register_forward_pre_hook(next_one, prepend=True)  # before FSDP's, which gathers
        try:
            yield
        finally:
            handle.remove()
            self.micro_batch = None

    @contextmanager
    def running(self, micro_batch: int) -> Iterator[None]:
        """A forward or backward pass of a pipeline's stage."""
        self.micro_batch = micro_batch
        try:
            with self.section("forward"):
                yield
        finally:
            self.micro_batch = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace not in ("c10d", "_c10d_functional"):
            return result
        name, group = func.overloadpacket.__name__, _group(args)
        if group is not None and name not in BARRIERS:
            axis = self.axes.get(group.group_name, group.group_desc)
            sides = (*args, result) if func.namespace == "_c10d_functional" else args
            nbytes = max(sum(t.nbytes for t in _tensors(side)) for side in sides)
            op = COLLECTIVES.get(name, name)
            self.calls.append(Collective(op, axis, group.size(), nbytes, self.current(), self.micro_batch))
        return result


class GroupedShapes(TorchDispatchMode):
    """Context in which torch's grouped GEMM takes fake tensors of every dtype. torch describes its result for bf16
    alone; a GPU also runs it in fp32."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not GROUPED_MM or args[0].dtype == torch.bfloat16:
            return func(*args, **(kwargs or {}))
        a, b, offsets = args[:3]
        if a.ndim == b.ndim == 2:
            return a.new_empty(len(offsets), len(a), b.shape[1])
        return a.new_empty(len(a), b.shape[2])


@dataclass(frozen=True)
class Traffic:
    """Bytes that leave a rank in one step of a pipeline, by axis: in each micro-batch, and once, whatever their number.

    `sent` as in `Collective`.
    """

    per_micro_batch: Counter[str]
    once: Counter[str]

    def of_step(self, micro_batches: int) -> Counter[str]:
        axes = {*self.per_micro_batch, *self.once}
        return Counter({axis: self.per_micro_batch[axis] * micro_batches + self.once[axis] for axis in axes})

    @staticmethod
    def of(calls: Iterable[Collective], micro_batches: int) -> Traffic:
        """calls: of a step with this number of micro-batches, all with the same passes; the last one has only what
        every one has. What travels between stages travels once for each."""
        per, total, between = Counter[str](), Counter[str](), Counter[str]()
        for call in calls:
            total[call.axis] += call.sent
            if call.micro_batch == micro_batches - 1:
                per[call.axis] += call.sent
            elif call.micro_batch is None and call.op in ("send", "receive"):
                between[call.axis] += call.sent
        per.update({axis: sent // micro_batches for axis, sent in between.items()})
        return Traffic(per, Counter({axis: total[axis] - per[axis] * micro_batches for axis in total}))


def repeat_second(calls: Sequence[Collective], times: int) -> list[Collective]:
    """The collectives of a step with `times` more micro-batches than the three of `calls`, each like the second."""
    before, second, after = [], [], []
    for call in calls:
        if call.micro_batch == 1:
            second.append(call)
        elif second:
            after.append(call if call.micro_batch is None else replace(call, micro_batch=2 + times))
        else:
            before.append(call)
    return before + [replace(call, micro_batch=1 + n) for n in range(times + 1) for call in second] + after


def _group(args: Sequence[Any]) -> dist.ProcessGroup | None:
    """The process group among an operator's arguments: an object, or for functional collectives the last string."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject):  # comes before the ReduceOp in every schema
            return dist.ProcessGroup.unbox(arg)
    names = [arg for arg in args if isinstance(arg, str)]
    return group_of_name(names[-1]) if names else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


@dataclass(frozen=True)
class RankBytes:
    """Bytes of the shards that one rank holds between steps.

    padding: additional bytes of their storages; torch pads a shard if a dimension does not divide.
    """

    weights: int
    gradients: int
    optimizer: int
    padding: int

    @property
    def total(self) -> int:
        """Bytes allocated."""
        return self.weights + self.gradients + self.optimizer + self.padding


def rank_bytes(parameters: Iterable[nn.Parameter], optimizer_state: Iterable[Tensor]) -> RankBytes:
    """Count the bytes of tensors, real or fake; the gradients are those that the parameters hold."""
    parameters = list(parameters)
    weights = [local_part(p.detach()) for p in parameters]
    gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
    state = [local_part(tensor) for tensor in optimizer_state]
    storages = {storage_id(tensor): tensor.untyped_storage() for tensor in (*weights, *gradients, *state)}
    allocated = sum(storage.nbytes() for storage in storages.values())
    held = [sum(tensor.nbytes for tensor in tensors) for tensors in (weights, gradients, state)]
    return RankBytes(held[0], held[1], held[2], allocated - sum(held))


@contextmanager
def fake_world(size: int, rank: int) -> Iterator[FakeTensorMode]:
    """Make this process `rank` of `size` in a process group whose collectives do nothing and return at once.

    Yields a mode to enter once the model is sharded: FSDP shards meta tensors, and only outside of it. Raises
    RuntimeError if this process is in a process group already.
    """
    if dist.is_initialized():
        raise RuntimeError("this process already belongs to a process group; destroy it before simulating a world")
    dist.init_process_group("fake", rank=rank, world_size=size, store=fake_store())
    try:
        # FSDP's meta tensors enter unchanged and leave as fake ones.
        yield FakeTensorMode(allow_non_fake_inputs=True)
    finally:
        dist.destroy_process_group()
        clear_sharding_cache()  # a later mesh of the same shape would get the fake one's process groups
