"""The gated activation and its gradients in one Triton kernel each: one program a row.

A thread reads and writes 16 bytes at a time in bf16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def forward_kernel(
    hidden: tl.tensor, weight: tl.tensor, out: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(weight + row).to(tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < WIDTH
        gate = tl.load(hidden + row * 2 * WIDTH + column, inside).to(tl.float32)
        up = tl.load(hidden + row * 2 * WIDTH + WIDTH + column, inside).to(tl.float32)
        tl.store(out + row * WIDTH + column, gate * tl.sigmoid(gate) * up * scale, inside)


@triton.jit
def backward_kernel(
    hidden: tl.tensor, weight: tl.tensor, dy: tl.tensor, d_hidden: tl.tensor, d_weight: tl.tensor, result: tl.tensor,
    AGAIN: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(weight + row).to(tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < WIDTH
        gate = tl.load(hidden + row * 2 * WIDTH + column, inside, 0).to(tl.float32)
        up = tl.load(hidden + row * 2 * WIDTH + WIDTH + column, inside, 0).to(tl.float32)
        d_out = tl.load(dy + row * WIDTH + column, inside, 0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        product = silu * up
        products += product * d_out
        if AGAIN:
            tl.store(result + row * WIDTH + column, product * scale, inside)
        d_act = d_out * scale
        # silu'(g) = s + s (g - silu(g)) with s = sigmoid(g)
        d_gate = (sigmoid + sigmoid * (gate - silu)) * d_act * up
        tl.store(d_hidden + row * 2 * WIDTH + column, d_gate, inside)
        tl.store(d_hidden + row * 2 * WIDTH + WIDTH + column, d_act * silu, inside)
    tl.store(d_weight + row, tl.sum(products, 0))


def _block(width: int) -> dict[str, int]:
    # 8 numbers a thread; with more warps, they only wait for one another in the sum over the row.
    block = min(512, triton.next_power_of_2(width))
    return {"WIDTH": width, "BLOCK": block, "num_warps": max(1, block // 256)}


def forward(hidden: Tensor, weight: Tensor) -> Tensor:
    """[R, 2I], [R] -> [R, I]."""
    rows, width = hidden.shape[0], hidden.shape[1] // 2
    out = hidden.new_empty(rows, width)
    if out.numel():
        forward_kernel[(rows,)](hidden.contiguous(), weight.contiguous(), out, **_block(width))
    return out


def backward(hidden: Tensor, weight: Tensor, dy: Tensor, again: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """[R, 2I], [R], the gradient [R, I] -> the result of `forward` if `again`, and the gradients of the first two."""
    rows, width = dy.shape
    d_hidden, d_weight = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (hidden, weight))
    result = torch.empty_like(dy) if again else None
    if dy.numel():
        backward_kernel[(rows,)](
            hidden.contiguous(), weight.contiguous(), dy, d_hidden, d_weight, d_hidden if result is None else result,
            AGAIN=again, **_block(width),
        )  # fmt: skip
    return result, d_hidden, d_weight
