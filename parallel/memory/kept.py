"""Keep what autograd saves of each block elsewhere, or in fewer bytes, until the backward pass needs it.

    forward    block i computes | block i + 1 computes        | block i + 2 computes
               copies to the host:  what block i saved          what block i + 1 saved ...

    backward   block i + 1 computes | block i computes ...
               copies back: block i's

Copies run on a stream of their own. What a block saved leaves the device when the next block has been computed, and
returns while the block after it is computed backward. On a CPU the same copies are made without streams.

Legend: T tokens · H hidden size.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parallel.dispatch.payload import Payload, Wire
from parallel.memory.host import to_host
from parallel.sharding.local import local_part
from parallel.torch_private import holds_storage, saving_hooks, storage_id

_Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
LEAST = 64 << 10  # bytes of a tensor that is worth a copy


class KeptActivations:
    """Changes what decoder blocks keep for backward; results stay the same, but for the rounding of `payload`.

    payload: the format in which a block's input is kept, rounded; None for its own. offload: keep on the host. inputs:
    change only each block's input, which is all that a recomputed block keeps; otherwise all large tensors but weights
    and what a block shares with others.
    """

    def __init__(self, *, payload: Payload | None, offload: bool, inputs: bool) -> None:
        self.payload, self.offload, self.inputs = payload, offload, inputs
        self.last: _Group | None = None
        self._stream: torch.cuda.Stream | None = None

    def wrap(self, blocks: Iterable[nn.Module]) -> None:
        """Change the forward pass of `blocks`, in the order in which they run: forward(x [T, H], ...), in place."""
        for number, block in enumerate(blocks):
            block.forward = functools.partial(self._run, block, block.forward, number)

    def _run(self, block: nn.Module, forward: Callable[..., Any], number: int, x: Tensor, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(x, *args)
        if self.offload and x.is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(x.device)
        before, self.last = self.last, _Group(self, x, self.last if number else None)
        shared = {storage_id(arg) for arg in args if isinstance(arg, Tensor)}
        # Autograd holds the hook as long as what it stored, so that it must not hold x.
        store = functools.partial(self._store, self.last, block, (x.shape, storage_id(x)), shared, saving_hooks())
        with torch.autograd.graph.saved_tensors_hooks(store, _restore):
            results = forward(x, *args)
        self.last.finish_sending()
        if before is not None:
            before.forget_originals()
        return results

    def _store(
        self,
        group: _Group,
        block: nn.Module,
        x: tuple[torch.Size, int],
        shared: set[int],
        around: _Hooks | None,
        tensor: Tensor,
    ) -> Any:
        """x: shape and storage of the block's input. around: hooks that take what stays here."""
        if (tensor.shape, storage_id(tensor)) == x if self.inputs else _worth_it(tensor, block, shared):
            return group.send(tensor)
        return tensor if around is None else _Other(around[0](tensor), around[1])

    def on_side(self) -> AbstractContextManager[Any]:
        """The stream of the copies, after all that the current one has been given."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def wait(self, event: torch.cuda.Event | None) -> None:
        if event is not None:
            torch.cuda.current_stream().wait_event(event)

    def record(self) -> torch.cuda.Event | None:
        return self._stream.record_event() if self._stream is not None else None


class _Group:
    """The tensors that one block saved in one forward pass. previous: the block that ran before it."""

    def __init__(self, owner: KeptActivations, x: Tensor, previous: _Group | None) -> None:
        self.owner, self.device, self.previous = owner, x.device, previous
        self.parts: list[weakref.ref[_Part]] = []  # weak: autograd owns them, and they refer to this
        self.originals: dict[Any, tuple[Tensor, _Part]] = {}
        self.sent: torch.cuda.Event | None = None
        self.fetched: torch.cuda.Event | None = None

    def send(self, tensor: Tensor) -> _Part:
        """Several operators may save one tensor: it is copied once."""
        key = (storage_id(tensor), tensor.storage_offset(), tensor.shape, tensor.stride())
        if key not in self.originals:
            wire = Wire(self.owner.payload) if self.owner.payload else None
            original = tensor.detach()
            packed = wire.pack(original) if wire else original
            if self.owner.offload:
                with self.owner.on_side():
                    part = _Part(self, to_host(packed), wire)
            else:
                part = _Part(self, packed, wire)
            self.parts.append(weakref.ref(part))
            self.originals[key] = packed if self.owner.offload else original, part
        return self.originals[key][1]

    def finish_sending(self) -> None:
        self.sent = self.owner.record()
        if not self.owner.offload:
            self.originals.clear()

    def forget_originals(self) -> None:
        """Free the tensors on the device, once they have been copied."""
        if self.originals:
            self.owner.wait(self.sent)
            self.originals.clear()

    def fetch(self) -> None:
        """Start to copy everything back that has not been."""
        self.forget_originals()
        if self.owner.last is not None:  # in a pipeline of another micro-batch
            self.owner.last.forget_originals()
        parts = [part for reference in self.parts if (part := reference()) is not None and not part.fetched]
        for part in parts:
            part.fetched = True
            # In the memory of the current stream, which will free it.
            part.copy = torch.empty_like(part.stored, device=self.device)
        if parts:
            with self.owner.on_side():
                for part in parts:
                    assert part.copy is not None
                    part.copy.copy_(part.stored, non_blocking=True)
            self.fetched = self.owner.record()


class _Part:
    """One saved tensor: `stored` is it, or stands for it in the format of `wire`."""

    def __init__(self, group: _Group, stored: Tensor, wire: Wire | None) -> None:
        self.group, self.stored, self.wire = group, stored, wire
        self.copy: Tensor | None = None
        self.fetched = False

    def restore(self) -> Tensor:
        found = self.stored
        if self.group.owner.offload:
            self.group.fetch()
            if self.group.previous is not None:
                self.group.previous.fetch()
            if self.copy is None:  # read for a second time
                self.copy = torch.empty_like(self.stored, device=self.group.device).copy_(self.stored)
            self.group.owner.wait(self.group.fetched)
            found, self.copy = self.copy, None
        return self.wire.unpack(found) if self.wire else found


@dataclass(frozen=True, slots=True)
class _Other:
    """The form in which other hooks stored a tensor."""

    stored: Any
    unpack: Callable[[Any], Tensor]

    def restore(self) -> Tensor:
        return self.unpack(self.stored)


def _restore(kept: Tensor | _Part | _Other) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept.restore()


def _worth_it(tensor: Tensor, block: nn.Module, shared: set[int]) -> bool:
    if not holds_storage(tensor) or not tensor.is_floating_point() or tensor.nbytes < LEAST:
        return False
    storage = tensor.untyped_storage()
    if storage.nbytes() < tensor.nbytes or storage_id(storage) in shared:  # expanded, or every block's
        return False
    # Weights are kept anyway. A tensor of a weight's size is taken for one, or for its copy in the compute dtype.
    return all(tensor.numel() != local_part(weight.detach()).numel() for weight in block.parameters())
