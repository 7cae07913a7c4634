"""Experts on a CPU, a few at a time, as torch's grouped GEMM there works inside.

Legend: T tokens · K experts per token · R = T*K rows · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder, sum_slots
from trainer.model.numerics import wide

# Rows of a block: enough to hide the cost of the calls between matmuls, few enough to stay in a core's cache.
BLOCK_ROWS = 512


class BlockedSwiGLU(torch.autograd.Function):
    """Gather, experts and sum on a CPU, a few experts at a time, as torch's grouped GEMM there works inside.

    The work between the matmuls of a block of experts happens while its rows are in cache, in scratch memory that the
    next block reuses. Saves x [T, H], the first GEMM's result and sigmoid(gate): 3 I numbers a row, nothing [R, H].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        (rows,), width = order.token_of_row.shape, w2.shape[2]
        weight_R1 = weights.to(x.dtype).flatten().index_select(0, order.slot_of_row).unsqueeze(-1)
        hidden, sigmoid, y = (
            x.new_empty(rows, 2 * width),
            x.new_empty(rows, width),
            _Sum(x, order),
        )
        blocks = _blocks(order.ends())
        longest = max(block.rows.stop - block.rows.start for block in blocks)
        x_buffer, act_buffer = x.new_empty(longest, x.shape[1]), x.new_empty(longest, width)
        into, out_of = w13.flatten(1, 2).transpose(1, 2).unbind(0), w2.transpose(1, 2).unbind(0)
        for rows_b, experts, counts in blocks:
            here = slice(0, rows_b.stop - rows_b.start)
            x_b = torch.index_select(x, 0, order.token_of_row[rows_b], out=x_buffer[here])
            _each_mm(x_b.split(counts), into[experts], hidden[rows_b].split(counts))
            gate, up = hidden[rows_b].chunk(2, dim=-1)
            gated = torch.sigmoid(gate, out=sigmoid[rows_b])
            act = torch.mul(gate, gated, out=act_buffer[here]).mul_(up).mul_(weight_R1[rows_b])
            # The gathered rows are no longer needed; their place takes the results, which are added while in cache.
            _each_mm(act.split(counts), out_of[experts], x_b.split(counts))
            y.add(rows_b, x_b)
        ctx.save_for_backward(x, w13, w2, weight_R1, hidden, sigmoid)
        ctx.order, ctx.blocks, ctx.longest, ctx.weight_dtype = order, blocks, longest, weights.dtype
        return y.total()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, w13, w2, weight_R1, hidden, sigmoid = ctx.saved_tensors
        dy, order, longest, width = grads[0].contiguous(), ctx.order, ctx.longest, sigmoid.shape[1]
        dx, d_row_weight = _Sum(x, order), torch.empty_like(weight_R1)
        d_w13, d_w2 = torch.empty_like(w13), torch.empty_like(w2)
        x_buffer, dy_buffer = (x.new_empty(longest, x.shape[1]) for _ in range(2))
        silu_buffer, act_buffer, d_buffer = (x.new_empty(longest, width) for _ in range(3))
        d_hidden_buffer = x.new_empty(longest, 2 * width)
        w_in, w_out, d_in, d_out = (w.unbind(0) for w in (w13.flatten(1, 2), w2, d_w13.flatten(1, 2), d_w2))
        for rows_b, experts, counts in ctx.blocks:
            here, tokens, weight = slice(0, rows_b.stop - rows_b.start), order.token_of_row[rows_b], weight_R1[rows_b]
            x_b = torch.index_select(x, 0, tokens, out=x_buffer[here])
            dy_b = torch.index_select(dy, 0, tokens, out=dy_buffer[here])
            gated, (gate, up) = sigmoid[rows_b], hidden[rows_b].chunk(2, dim=-1)
            d_hidden, d_act = d_hidden_buffer[here], d_buffer[here]
            d_gate, d_up = d_hidden.chunk(2, dim=-1)
            silu = torch.mul(gate, gated, out=silu_buffer[here])
            act = torch.mul(silu, up, out=act_buffer[here])
            _each_mm(dy_b.split(counts), w_out[experts], d_act.split(counts))
            torch.sum(torch.mul(d_act, act, out=d_gate), -1, keepdim=True, out=d_row_weight[rows_b])
            act.mul_(weight)
            _each_mm(dy_b.t().split(counts, dim=1), act.split(counts), d_out[experts])
            torch.mul(d_act.mul_(weight), silu, out=d_up)
            # silu'(g) = s + s (g - silu(g)) with s = sigmoid(g)
            torch.addcmul(gated, gated, torch.sub(gate, silu, out=d_gate), out=d_gate).mul_(d_act.mul_(up))
            _each_mm(d_hidden.t().split(counts, dim=1), x_b.split(counts), d_in[experts])
            _each_mm(d_hidden.split(counts), w_in[experts], x_b.split(counts))
            dx.add(rows_b, x_b)
        slots = order.row_of_slot
        d_weights = d_row_weight.flatten().index_select(0, slots.flatten()).view_as(slots).to(ctx.weight_dtype)
        return dx.total(), d_weights, d_w13, d_w2, None


class _Sum:
    """The sum of each token's rows, block by block: added while the block is in cache, in the order of the experts; or,
    where the order of the slots is asked for, kept and gathered at the end."""

    def __init__(self, x: Tensor, order: RowOrder) -> None:
        self.order, self.dtype = order, x.dtype
        if order.by_slot:
            self.sums = x.new_empty(len(order.token_of_row), x.shape[1])
        else:
            self.sums = torch.zeros_like(x, dtype=wide(x.dtype))

    def add(self, rows: slice, results: Tensor) -> None:
        if self.order.by_slot:
            self.sums[rows] = results
        else:
            self.sums.index_add_(0, self.order.token_of_row[rows], results.to(self.sums.dtype))

    def total(self) -> Tensor:
        return sum_slots(self.sums, self.order.row_of_slot) if self.order.by_slot else self.sums.to(self.dtype)


class _RowBlock(NamedTuple):
    """Consecutive experts whose rows are worked on together."""

    rows: slice
    experts: slice
    counts: list[int]  # rows of each of the experts


def _blocks(ends: list[int]) -> list[_RowBlock]:
    """Cut the experts into runs of at least BLOCK_ROWS rows. ends: of each expert's rows."""
    blocks, first, start = [], 0, 0
    counts = [b - a for a, b in pairwise([0, *ends])]
    for expert, end in enumerate(ends):
        if end - start >= BLOCK_ROWS or expert == len(ends) - 1:
            blocks.append(_RowBlock(slice(start, end), slice(first, expert + 1), counts[first : expert + 1]))
            first, start = expert + 1, end
    return blocks


def _each_mm(left: Sequence[Tensor], right: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    for a, b, result in zip(left, right, out, strict=True):
        torch.mm(a, b, out=result)
