"""Triton kernels that gather tokens into padded rows and sum the rows of each token.

Legend: T tokens · K experts per token · P padded rows · H hidden size.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder, padded_rows
from trainer.kernels.triton_order import build

BLOCK = 1024  # 8 numbers a thread: 16 bytes in bf16


@triton.jit
def gather_kernel(x: tl.tensor, index: tl.tensor, out: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(index + row)
    for start in tl.static_range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < WIDTH
        tl.store(out + row * WIDTH + column, tl.load(x + source * WIDTH + column, inside & (source >= 0), 0), inside)


@triton.jit
def sum_kernel(
    rows: tl.tensor, row_of_slot: tl.tensor, out: tl.tensor, K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(K):
        row = tl.load(row_of_slot + token * K + slot)
        total += tl.load(rows + row * WIDTH + column, inside, 0).to(tl.float32)
    tl.store(out + token * WIDTH + column, total, inside)


@triton.jit
def spread_kernel(values: tl.tensor, index: tl.tensor, out: tl.tensor, rows: int, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(index + row, row < rows, -1)
    tl.store(out + row, tl.load(values + source, source >= 0, 0), row < rows)


def _block(width: int) -> dict[str, int]:
    return {"WIDTH": width, "BLOCK": min(BLOCK, triton.next_power_of_2(width))}


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x[index], zeros where the index is -1: [T, H], [P] -> [P, H]."""
    out = x.new_empty(len(index), x.shape[1])
    gather_kernel[(len(index),)](x.contiguous(), index, out, **_block(x.shape[1]))
    return out


def sum_slots(rows: Tensor, row_of_slot: Tensor) -> Tensor:
    """Each token's rows added in fp32, in the order of its slots: [P, H], [T, K] -> [T, H]."""
    (tokens, k), width = row_of_slot.shape, rows.shape[1]
    out = rows.new_empty(tokens, width)
    if tokens:
        sizes = _block(width)
        sum_kernel[(tokens, triton.cdiv(width, sizes["BLOCK"]))](rows.contiguous(), row_of_slot, out, K=k, **sizes)
    return out


def spread(values: Tensor, slot_of_row: Tensor) -> Tensor:
    """values[slot], zeros where it is -1: [T, K], [P] -> [P]."""
    rows = len(slot_of_row)
    out = values.new_empty(rows)
    spread_kernel[(triton.cdiv(rows, BLOCK),)](values.contiguous(), slot_of_row, out, rows, BLOCK=BLOCK)
    return out


class FusedOrder(PaddedOrder):
    """A `PaddedOrder` whose index build, gathers and sum are Triton kernels; bitwise the same rows."""

    def __init__(self, order: RowOrder, align: int) -> None:
        self.slots = order.ids.numel()
        self.rows = padded_rows(self.slots, order.num_experts, align)
        indices = build(order.ids, order.num_experts, self.rows, align)
        self.token_of_row, self.slot_of_row, self.row_of_slot, self.offsets = indices

    def _spread_tokens(self, x: Tensor) -> Tensor:
        return gather(x, self.token_of_row)

    def _spread_slots(self, weights: Tensor) -> Tensor:
        return spread(weights, self.slot_of_row)

    def _sum_rows(self, rows: Tensor) -> Tensor:
        return sum_slots(rows, self.row_of_slot)
