"""Each Triton kernel of `trainer.kernels` against its twin in torch, at the sizes of one rank of the 1T model.

`tests/trainer/kernels/examples.py` has what is called, and how many bytes that has to move at least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from parallel.dispatch.padding import PaddedOrder
from tests.bench.gpu.clock import Clock, Skipped, distance, tried
from tests.trainer.kernels.examples import EXAMPLES, Call
from trainer.kernels.choose import make_ops
from trainer.model.ops import TORCH

TOLERANCE = 2e-2  # of two ways to compute in bf16


def results(name: str, call: Call) -> dict[str, Tensor]:
    """The results of `call` with the operations called `name`, by number."""
    made = call(make_ops(name))
    if isinstance(made, PaddedOrder):
        made = made.token_of_row, made.slot_of_row, made.row_of_slot, made.offsets
    made = (made,) if isinstance(made, Tensor) else made
    return {str(number): out.detach().float() for number, out in enumerate(made)}


@dataclass(frozen=True)
class KernelRow:
    """Milliseconds are medians; host_syncs: of one call under torch and under Triton. distance: of the results,
    relative. skipped: why Triton has no figures; torch has some all the same."""

    arm: str
    tokens: int
    least_bytes: int
    torch_ms: float
    triton_ms: float | None
    host_syncs: tuple[int | None, ...]
    distance: float | None
    skipped: str | None

    def record(self) -> dict[str, Any]:
        return {"section": "kernels", **vars(self)}


COLUMNS = ("tokens", "kernel", "torch ms", "Triton ms", "faster", "GB/s", "host syncs", "off by")


def line(row: KernelRow) -> str:
    cells = [str(row.tokens), row.arm, f"{row.torch_ms:.3f}"]
    if row.triton_ms is None:
        cells += ["", "", ""]
    else:
        rate = row.least_bytes / row.triton_ms / 1e6
        cells += [f"{row.triton_ms:.3f}", f"{row.torch_ms / row.triton_ms:.2f}x", f"{rate:.0f}"]
    cells.append("" if None in row.host_syncs else ", ".join(map(str, row.host_syncs)))
    cells.append(row.skipped or f"{row.distance:.1e}")
    return "| " + " | ".join(cells) + " |"


def measure(tokens: int, rounds: int, clock: Clock) -> Iterator[KernelRow]:
    """A row for each kernel; where Triton's fails or makes other numbers, it says so in place of its figures."""
    for example in EXAMPLES:
        problem = None if clock.device.type == "cuda" else "Triton's kernels need a CUDA device"
        off = None
        call = example.build(tokens, clock.device)
        steps = {"torch": partial(call, TORCH)}
        if problem is None:
            expected, found = results("torch", call), tried(partial(results, "triton", call))
            if isinstance(found, Skipped):
                problem = found.reason
            elif (off := distance(found, expected)) > TOLERANCE:
                problem = f"FAILED: its results are off by {off:.2g}"
        if problem is None:
            steps["triton"] = partial(call, make_ops("triton"))
        ms = clock.take_turns(steps, rounds)
        yield KernelRow(
            example.name, tokens, example.bytes(tokens), ms["torch"], ms.get("triton"),
            tuple(clock.host_syncs(step) for step in steps.values()),
            off if off is not None and math.isfinite(off) else None, problem,
        )  # fmt: skip
