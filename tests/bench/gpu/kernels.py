"""Each Triton kernel of `trainer.kernels` against its twin in torch, at the sizes that a layer of the slice gives it.

Legend: T tokens · K experts per token · R = T*K rows · P padded rows · E experts · H hidden size · I expert width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallel.dispatch import RowOrder
from tests.bench.gpu.clock import Arm, Clock, Skipped, Timing, distance, tried
from tests.bench.gpu.routing import Size, draw_logits
from trainer import kernels
from trainer.kernels.quantize import dequantize_rows, quantize_rows
from trainer.kernels.router import fused_routing
from trainer.kernels.rows import pad_order
from trainer.kernels.swiglu import weighted_swiglu
from trainer.model.router import select_experts
from trainer.model.te_support import NATIVE_ROWS
from trainer.precision import router_weights


@dataclass
class Work:
    """What a kernel is given: run makes its outputs, leaves get gradients (none: there is no backward). bytes: what has
    to be read and written at least, forward, and forward and backward."""

    run: Callable[[], tuple[Tensor, ...]]
    leaves: list[Tensor]
    forward_bytes: int
    both_bytes: int

    def arm(self, name: str, grads: list[Tensor]) -> Arm:
        """By "torch" or "triton". grads: of the outputs, made at the first use and then the same for both."""

        def forward() -> tuple[Tensor, ...]:
            with chosen(name):
                return self.run()

        def both() -> tuple[Tensor, ...]:
            with chosen(name):
                made = self.run()
                differentiable = [out for out in made if out.requires_grad]
                if not differentiable:
                    return made
                grads.extend(torch.randn_like(out) for out in differentiable[len(grads) :])
                return *made, *torch.autograd.grad(differentiable, self.leaves, grads)

        return Arm(forward, both, lambda: {str(n): out.detach().float() for n, out in enumerate(both())})


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """What CUDA tensors get inside; torch again after."""
    kernels.use(name)
    try:
        yield
    finally:
        kernels.use("torch")


def why_not(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "Triton's kernels need a CUDA device"


def _random(size: Size, *shape: int) -> Tensor:
    generator = torch.Generator(size.device).manual_seed(len(shape))
    return torch.empty(shape, dtype=size.dtype, device=size.device).normal_(generator=generator)


def swiglu(size: Size) -> Work:
    rows, width = size.tokens * size.part.per_token, size.part.width
    hidden = _random(size, rows, 2 * width).requires_grad_()
    weight = torch.rand(rows, device=size.device).requires_grad_()
    number = hidden.element_size()
    return Work(
        lambda: (weighted_swiglu(hidden, weight),),
        [hidden, weight],
        3 * number * width * rows,
        (3 + 5) * number * width * rows,
    )


def router(size: Size) -> Work:
    part = size.part
    logits = draw_logits(part, size.tokens, size.skew).float().to(size.device).requires_grad_()

    def run() -> tuple[Tensor, ...]:
        if kernels.on_triton(logits):
            return fused_routing(logits, part.groups, part.per_token, "ste")
        ids = select_experts(logits.detach(), part.groups, part.per_token)
        return ids, router_weights(logits, ids, "ste")

    forward = size.tokens * (4 * part.experts + 12 * part.per_token)
    return Work(run, [logits], forward, forward + size.tokens * (8 * part.experts + 12 * part.per_token))


def index_build(size: Size) -> Work:
    ids, experts = size.ids(), size.part.experts

    def run() -> tuple[Tensor, ...]:
        order = pad_order(RowOrder(ids, experts), NATIVE_ROWS)
        return order.token_of_row, order.slot_of_row, order.row_of_slot, order.offsets

    padded = len(run()[0])
    moved = 8 * ids.numel() + 16 * padded + 8 * ids.numel() + 4 * experts
    return Work(run, [], moved, moved)


def gather(size: Size) -> Work:
    """Forward to the padded rows, backward the sum of a token's rows; the order is found before."""
    ids, x = size.ids(), _random(size, size.tokens, size.part.hidden).requires_grad_()
    return _with_order(size, ids, x, lambda order: order.gather(x), forward_writes_rows=True)


def combine(size: Size) -> Work:
    """Forward the sum of a token's rows, backward to the padded rows; the order is found before."""
    ids = size.ids()
    padded = len(pad_order(RowOrder(ids, size.part.experts), NATIVE_ROWS).token_of_row)
    rows = _random(size, padded, size.part.hidden).requires_grad_()
    return _with_order(size, ids, rows, lambda order: order.combine(rows), forward_writes_rows=False)


def _with_order(
    size: Size, ids: Tensor, leaf: Tensor, run: Callable[[Any], Tensor], *, forward_writes_rows: bool
) -> Work:
    orders: dict[bool, Any] = {}  # by whether it is Triton's

    def once() -> tuple[Tensor, ...]:
        fused = kernels.on_triton(leaf)
        if fused not in orders:
            orders[fused] = pad_order(RowOrder(ids, size.part.experts), NATIVE_ROWS)
        return (run(orders[fused]),)

    width = size.part.hidden * leaf.element_size()
    rows, padded = ids.numel(), len(pad_order(RowOrder(ids, size.part.experts), NATIVE_ROWS).token_of_row)
    spread, added = (rows + padded) * width, (rows + size.tokens) * width
    return Work(once, [leaf], spread if forward_writes_rows else added, spread + added)


def quantize(size: Size) -> Work:
    x = _random(size, size.tokens, size.part.hidden)
    moved = x.numel() * (x.element_size() + 1) + 4 * x.numel() // 128
    return Work(lambda: quantize_rows(x), [], moved, moved)


def dequantize(size: Size) -> Work:
    codes, scale = quantize_rows(_random(size, size.tokens, size.part.hidden))
    moved = codes.numel() * (size.dtype.itemsize + 1) + 4 * scale.numel()
    return Work(lambda: (dequantize_rows(codes, scale, size.dtype),), [], moved, moved)


KERNELS: dict[str, Callable[[Size], Work]] = {
    "SwiGLU x routing weight": swiglu,
    "router: ids and weights": router,
    "rows sorted and padded: indices": index_build,
    "gather to padded rows": gather,
    "sum of a token's rows": combine,
    "quantise tokens to e4m3": quantize,
    "dequantise tokens": dequantize,
}


@dataclass(frozen=True)
class KernelRow:
    """bytes: what has to move at least. skipped: why Triton has no figures; torch has some all the same."""

    arm: str
    tokens: int
    forward_bytes: int
    both_bytes: int
    torch: Timing
    triton: Timing | None
    distance: float | None
    skipped: str | None

    def record(self) -> dict[str, Any]:
        timings = {"torch": vars(self.torch), "triton": vars(self.triton) if self.triton else None}
        return {"section": "kernels", **vars(self), **timings}


COLUMNS = (
    "tokens", "kernel", "torch ms", "Triton ms", "faster", "GB/s", "torch ms, both ways", "Triton ms", "faster", "GB/s",
    "off by",
)  # fmt: skip


def line(row: KernelRow) -> str:
    cells = [str(row.tokens), row.arm]
    for way, moved in (("forward_ms", row.forward_bytes), ("both_ms", row.both_bytes)):
        torch_ms, triton_ms = getattr(row.torch, way), getattr(row.triton, way, None)
        cells.append(f"{torch_ms:.3f}")
        if triton_ms is None:
            cells += ["", "", ""]
        else:
            cells += [f"{triton_ms:.3f}", f"{torch_ms / triton_ms:.2f}x", f"{moved / triton_ms / 1e6:.0f}"]
    cells.append(row.skipped or f"{row.distance:.1e}")
    return "| " + " | ".join(cells) + " |"


def measure(size: Size, rounds: int, clock: Clock) -> Iterator[KernelRow]:
    """A row for each kernel; where Triton's fails or makes other numbers, it says so in place of its figures."""
    for name, make in KERNELS.items():
        work, grads = make(size), list[Tensor]()
        arms = {which: work.arm(which, grads) for which in ("torch", "triton")}
        problem, off = why_not(size.device), None
        if problem is None:
            expected, found = (tried(arm.results) for arm in arms.values() if arm.results)
            if isinstance(expected, Skipped):
                raise RuntimeError(f"{name}: torch's own {expected.reason}")
            if isinstance(found, Skipped):
                problem = found.reason
            elif (off := distance(found, expected)) > arms["triton"].tolerance:
                problem = f"FAILED: its results are off by {off:.2g}"
        if problem:
            del arms["triton"]
        timings = clock.compare(arms, rounds)
        yield KernelRow(
            name, size.tokens, work.forward_bytes, work.both_bytes, timings["torch"], timings.get("triton"),
            off if off is not None and math.isfinite(off) else None, problem,
        )  # fmt: skip
