"""AdamW with its moments in host memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from parallel.fused_adamw import MOMENTS, fused_adamw
from trainer.optim.narrow_adamw import pieces

# Elements that are updated at one time, and how many such pieces have room on the device: one is updated while the next
# arrives and those before return. A multiple of 64, so that a CPU's vectors end where those of a whole weight do.
PIECE = 16 << 20
SLOTS = 3


class HostAdamW(torch.optim.AdamW):
    """torch's fused AdamW on fp32 parameters whose moments are stored on the host, page-locked beside a GPU.

    A step brings them to the device piece by piece, updates them there and copies them back. On a GPU the copies run on
    streams of their own, in both directions at once: the update waits only for the piece that it needs, and what is
    still on its way back at the end of the step travels during the next forward pass. `moments`: their dtype, None for
    that of the parameters; narrower ones are updated in fp32 and rounded once, as in `NarrowAdamW`. The numbers are
    bitwise those of moments on the device.
    """

    def __init__(self, groups: list[dict[str, Any]], *, moments: torch.dtype | None = None, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        leaves = [leaf for group in self.param_groups for leaf in group["params"]]
        device, moments = leaves[0].device, moments or leaves[0].dtype
        pinned = device.type == "cuda"
        for leaf in leaves:
            self.state[leaf] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                **{key: torch.zeros(leaf.shape, dtype=moments, pin_memory=pinned) for key in MOMENTS},
            }
        room = min(PIECE, max(sum(leaf.numel() for leaf in leaves), 1))
        self._slots = [_Slot(room, moments, device) for _ in range(SLOTS)]
        self._arriving, self._returning = _Lane(device), _Lane(device)

    def finish_copies(self) -> None:
        """Wait until the moments on the host are those of the last step."""
        self._returning.finish()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        work = [
            (group, piece)
            for group in self.param_groups
            for piece in pieces([leaf for leaf in group["params"] if leaf.grad is not None], PIECE)
        ]
        for slot in self._slots:  # a piece may have travelled in another one the last time
            with self._arriving.after(slot.returned):
                pass
        counts: dict[Tensor, Tensor] = {}
        for number, (group, piece) in enumerate(work):
            if number == 0:
                self._fetch(0, piece)
            if number + 1 < len(work):  # ahead of the update of this one
                self._fetch(number + 1, work[number + 1][1])
            slot = self._slots[number % SLOTS]
            slot.arrived.wait()
            parts = slot.parts(piece)
            dtype = piece[0][0].dtype
            wide = [
                [moment.to(dtype) for moment in kind] for kind in parts
            ]  # the same tensors unless they are narrower
            steps = [self.state[leaf]["step"].clone() for leaf, _ in piece]  # each piece of a weight starts from it
            fused_adamw(
                [leaf.view(-1)[part] for leaf, part in piece],
                [leaf.grad.reshape(-1)[part] for leaf, part in piece if leaf.grad is not None],
                (wide[0], wide[1]),
                steps,
                group,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
            )
            for kind, widened in zip(parts, wide, strict=True):
                for moment, updated in zip(kind, widened, strict=True):
                    if moment is not updated:
                        moment.copy_(updated)
            self._return(slot, piece)
            counts.update((leaf, count) for (leaf, _), count in zip(piece, steps, strict=True))
        for leaf, count in counts.items():
            self.state[leaf]["step"].copy_(count)

    def _fetch(self, number: int, piece: list[tuple[Tensor, slice]]) -> None:
        slot = self._slots[number % SLOTS]
        with self._arriving.after(slot.returned):
            for key, kind in zip(MOMENTS, slot.parts(piece), strict=True):
                for (leaf, part), moment in zip(piece, kind, strict=True):
                    moment.copy_(self.state[leaf][key].view(-1)[part], non_blocking=True)
            slot.arrived.record()

    def _return(self, slot: _Slot, piece: list[tuple[Tensor, slice]]) -> None:
        slot.updated.record()
        with self._returning.after(slot.updated):
            for key, kind in zip(MOMENTS, slot.parts(piece), strict=True):
                for (leaf, part), moment in zip(piece, kind, strict=True):
                    self.state[leaf][key].view(-1)[part].copy_(moment, non_blocking=True)
            slot.returned.record()


class _Slot:
    """Room on the device for the moments of one piece, and the events that hand it from one lane to the next."""

    def __init__(self, room: int, dtype: torch.dtype, device: torch.device) -> None:
        self.moments = [torch.empty(room, dtype=dtype, device=device) for _ in MOMENTS]
        self.arrived, self.updated, self.returned = _Mark(device), _Mark(device), _Mark(device)

    def parts(self, piece: list[tuple[Tensor, slice]]) -> list[list[Tensor]]:
        """The moments of each part of `piece`, flat, one after another; a list for each kind."""
        sizes = [part.stop - part.start for _, part in piece]
        return [list(moment[: sum(sizes)].split(sizes)) for moment in self.moments]


class _Mark:
    """A CUDA event; nothing on a CPU, where everything runs in order."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event() if device.type == "cuda" else None

    def record(self) -> None:
        if self.event is not None:
            self.event.record()

    def wait(self) -> None:
        if self.event is not None:
            torch.cuda.current_stream().wait_event(self.event)


class _Lane:
    """A CUDA stream for copies; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def after(self, mark: _Mark) -> AbstractContextManager[Any]:
        """A context whose copies run on this lane, once `mark` is reached."""
        if self.stream is None:
            return nullcontext()
        if mark.event is not None:
            self.stream.wait_event(mark.event)
        return torch.cuda.stream(self.stream)

    def finish(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()
