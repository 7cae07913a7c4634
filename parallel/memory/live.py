"""Count the bytes of live tensors, real or fake, and find the point of a step at which they are the most.

    with LiveBytes() as live:
        live.label("weights", model.parameters())
        ...                                 # a step
        live.label("gradients", gradients)  # counts for their whole life
    live.peak()

It sees tensors through the dispatcher. A storage counts once, whatever the number of its views, from the operator that
returns or first reads it until its last reference is gone, those of autograd and of collectives included. It does not
see scratch memory inside an operator, nor buffers of communication libraries, nor what an allocator loses between
tensors.

torch's own MemTracker (in `torch.distributed._tools`) counts alike, but by module and with hooks on all of them; here a
step is enough, and the same count runs on fake tensors and on FSDP.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.memory.host import TO_HOST
from parallel.memory.sections import Sections
from parallel.sharding.local import local_part
from parallel.torch_private import holds_storage, storage_id

LABELS = ("weights", "gradients", "optimizer", "gathered", "quantised", "activations")
HOST = "host"  # bytes of the host's memory, which the others do not compete with


@dataclass(frozen=True)
class Peak:
    """Bytes of live tensors on one rank at the point at which there are the most.

    where: "backward" if autograd was running (recomputed forward passes included), otherwise the section, as in
    `CollectiveLog`. gathered: weights that FSDP has gathered. quantised: copies of weights that experts keep for the
    step. activations: everything else, buffers of the communication included. kept: the most of them that there were
    between two passes of a pipeline. host: the most that was in the host's memory at any point, which is not part of
    the total.
    """

    where: str
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    quantised: int
    activations: int
    host: int = 0
    kept: int = 0

    @property
    def total(self) -> int:
        held = self.weights + self.gradients + self.optimizer + self.gathered + self.quantised
        return held + self.activations


@dataclass(eq=False, slots=True)
class _Kind:
    """The label of a storage, for its whole life."""

    label: str = "activations"


@dataclass(eq=False, slots=True)
class Allocation:
    """`nbytes` from event `born` until event `died` (None: still live). operator: the one that allocated them."""

    kind: _Kind
    nbytes: int
    born: int
    where: str
    operator: str
    died: int | None = None

    @property
    def label(self) -> str:
        return self.kind.label


class LiveBytes(Sections):
    """Context that follows every storage that this thread, and its backward passes, use.

    device: the type of the device whose memory is counted; tensors elsewhere are in the host's.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.allocations: list[Allocation] = []
        self._events = 0
        self._pauses: list[int] = []
        self._restore: list[Any] = []  # what `UntypedStorage.resize_` was, for each time that this was entered
        # storage -> (its live bytes, the reference that notices its end)
        self._live: dict[int, tuple[Allocation, weakref.ref[Any]]] = {}

    # ---- what the caller knows

    def pause(self) -> None:
        """Note that no pass is running: activations that are live are kept for a later one."""
        self._pauses.append(self._events)

    def label(self, label: str, tensors: Iterable[Tensor]) -> None:
        """Count the storages of `tensors` as `label`, from their start; of a DTensor, this rank's part. What is on the
        host keeps that label."""
        for tensor in tensors:
            self._see(part := local_part(tensor.detach()), "")
            if (found := self._live.get(storage_id(part))) is not None and found[0].label != HOST:
                found[0].kind.label = label

    # ---- what torch does

    def __enter__(self) -> LiveBytes:
        super().__enter__()
        # Storages change size without an operator: FSDP frees gathered weights this way, and allocates them again.
        resize = torch.UntypedStorage.resize_
        self._restore.append(resize)
        torch.UntypedStorage.resize_ = _resize_and_report(resize, self._follow_size)  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._restore.pop()  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # such as a fake tensor's device
            return func(*args, **kwargs)
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, "")
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._see(tensor, func.overloadpacket.__name__, on_host=func is TO_HOST)
        return result

    def _see(self, tensor: Tensor, operator: str, *, on_host: bool = False) -> None:
        if not holds_storage(tensor):
            return
        storage = tensor.untyped_storage()
        key, nbytes = storage_id(storage), storage.nbytes()
        found = self._live.get(key)
        if found is None:
            kind = _Kind(HOST) if on_host or tensor.device.type != self.device else _Kind()
            self._start(key, kind, nbytes, operator, weakref.ref(storage, lambda _: self._end(key)))
        elif found[0].nbytes != nbytes:  # resized by an operator
            self._restart(key, nbytes, operator)

    def _start(self, key: int, kind: _Kind, nbytes: int, operator: str, reference: weakref.ref[Any]) -> None:
        allocation = Allocation(kind, nbytes, self._next(), self.current(), operator)
        self.allocations.append(allocation)
        self._live[key] = allocation, reference

    def _end(self, key: int) -> None:
        allocation, _ = self._live.pop(key)
        allocation.died = self._next()

    def _restart(self, key: int, nbytes: int, operator: str) -> None:
        """The storage has another size now."""
        allocation, reference = self._live[key]
        allocation.died = self._next()
        self._start(key, allocation.kind, nbytes, operator, reference)

    def _follow_size(self, storage: torch.UntypedStorage) -> None:
        found = self._live.get(key := storage_id(storage))
        if found is not None and found[0].nbytes != storage.nbytes():
            found[0].kind.label = "gathered"
            self._restart(key, storage.nbytes(), "resize_")

    def _next(self) -> int:
        self._events += 1
        return self._events

    # ---- what was seen

    def peak(self, where: str | None = None) -> Peak:
        """The peak of the whole time, or of what was allocated in one section."""
        most, most_host, at, of = 0, 0, 0, self.where
        live = Counter[bool]()
        for event, nbytes, allocation in sorted(self._changes(), key=lambda change: change[0]):
            on_host = allocation.label == HOST
            live[on_host] += nbytes
            most_host = max(most_host, live[True])
            if nbytes > 0 and live[False] > most and where in (None, allocation.where):
                most, at, of = live[False], event, allocation.where
        held = Counter[str]()
        for allocation in self.live_at(at):
            held[allocation.label] += allocation.nbytes
        return Peak(of, **{label: held[label] for label in LABELS}, host=most_host, kept=self._most_kept())

    def _most_kept(self) -> int:
        pauses, most, live = iter(self._pauses), 0, 0
        pause = next(pauses, None)
        for event, nbytes, allocation in sorted(self._changes(), key=lambda change: change[0]):
            while pause is not None and event > pause:
                most, pause = max(most, live), next(pauses, None)
            live += nbytes if allocation.label == "activations" else 0
        return most

    def live_at(self, event: int) -> list[Allocation]:
        return [a for a in self.allocations if a.born <= event and (a.died is None or a.died > event)]

    def _changes(self) -> Iterator[tuple[int, int, Allocation]]:
        for allocation in self.allocations:
            yield allocation.born, allocation.nbytes, allocation
            if allocation.died is not None:
                yield allocation.died, -allocation.nbytes, allocation


def _resize_and_report(resize: Any, report: Any) -> Any:
    def resize_(storage: torch.UntypedStorage, size: int) -> Any:
        found = resize(storage, size)
        report(storage)
        return found

    return resize_


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
