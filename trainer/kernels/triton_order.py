"""Rows sorted by expert and padded, by counting, in three Triton kernels.

Ids are small numbers, so they need no comparing sort: count each expert's slots in each block of slots, sum the counts
over the blocks before, and every slot knows its row. Nothing is added atomically, so the order is stable.

Legend: T tokens · K experts per token · S = T*K slots · E experts · P padded rows · B blocks of slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 128  # of a block: ranks inside it come from comparing all pairs
SCANNED = 256  # blocks in one turn of the scan


@triton.jit
def known_ids(here: tl.tensor, inside: tl.tensor, E: tl.constexpr) -> tl.tensor:
    """The ids, clamped to those of experts, so that no store goes out of bounds. Code that takes ids from outside
    checks them."""
    return tl.minimum(tl.maximum(tl.load(here, inside, 0), 0), E - 1).to(tl.int32)


@triton.jit
def count_kernel(
    ids: tl.tensor, counts: tl.tensor, slots: int, E: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr
) -> None:
    block = tl.program_id(0)
    slot = block * SLOTS + tl.arange(0, SLOTS)
    inside = slot < slots
    id_S = known_ids(ids + slot, inside, E)
    expert = tl.arange(0, BINS)
    tl.store(counts + block * E + expert, tl.histogram(id_S, BINS, inside), expert < E)


@triton.jit
def scan_kernel(
    counts: tl.tensor, totals: tl.tensor, blocks: int, E: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
) -> None:
    """Replace the counts [B, E] by their exclusive sums over the blocks, and write the totals [E]."""
    expert = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    before = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, blocks, ROWS):
        block = start + tl.arange(0, ROWS)
        here = counts + block[:, None] * E + expert[None, :]
        inside = (block[:, None] < blocks) & (expert[None, :] < E)
        count = tl.load(here, inside, 0)
        tl.store(here, before[None, :] + tl.cumsum(count, 0) - count, inside)
        before += tl.sum(count, 0)
    tl.store(totals + expert, before, expert < E)


@triton.jit
def place_kernel(
    ids: tl.tensor, counts: tl.tensor, totals: tl.tensor,
    token_of_row: tl.tensor, slot_of_row: tl.tensor, row_of_slot: tl.tensor, offsets: tl.tensor,
    slots: int, K: tl.constexpr, ALIGN: tl.constexpr, E: tl.constexpr, BINS: tl.constexpr, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
    block = tl.program_id(0)
    expert = tl.arange(0, BINS)
    padded = tl.cdiv(tl.load(totals + expert, expert < E, 0), ALIGN) * ALIGN
    ends = tl.cumsum(padded, 0)
    if block == 0:
        tl.store(offsets + expert, ends, expert < E)
    number = tl.arange(0, SLOTS)
    slot = block * SLOTS + number
    inside = slot < slots
    id_S = known_ids(ids + slot, inside, E)
    earlier = (id_S[None, :] == id_S[:, None]) & (number[None, :] < number[:, None])
    rank = tl.sum(earlier.to(tl.int32), 1)
    row = tl.gather(ends - padded, id_S, 0) + tl.load(counts + block * E + id_S, inside, 0) + rank
    tl.store(row_of_slot + slot, row.to(tl.int64), inside)
    tl.store(slot_of_row + row, slot.to(tl.int64), inside)
    tl.store(token_of_row + row, (slot // K).to(tl.int64), inside)


def build(ids: Tensor, experts: int, rows: int, align: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids [T, K] int64 -> token_of_row [P], slot_of_row [P], row_of_slot [T, K], offsets [E]; P is given."""
    slots, blocks = ids.numel(), max(1, triton.cdiv(ids.numel(), SLOTS))
    counts, totals, offsets = (ids.new_empty(n, dtype=torch.int32) for n in (blocks * experts, experts, experts))
    token_of_row, slot_of_row = ids.new_full((2, rows), -1).unbind(0)
    row_of_slot = torch.empty_like(ids, memory_format=torch.contiguous_format)
    sizes = {"E": experts, "BINS": triton.next_power_of_2(experts), "SLOTS": SLOTS}
    ids = ids.contiguous()
    count_kernel[(blocks,)](ids, counts, slots, **sizes)
    scan_kernel[(triton.cdiv(experts, 8),)](counts, totals, blocks, E=experts, ROWS=SCANNED, COLUMNS=8)
    place_kernel[(blocks,)](
        ids, counts, totals, token_of_row, slot_of_row, row_of_slot, offsets, slots,
        K=ids.shape[1], ALIGN=align, **sizes,
    )  # fmt: skip
    return token_of_row, slot_of_row, row_of_slot, offsets
