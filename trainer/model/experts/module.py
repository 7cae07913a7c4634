"""SwiGLU experts over rows sorted by expert, with several back ends.

A back end is (x [T, H], weights [T, K], w13, w2, order) -> [T, H], with the experts' weights as they are stored: it
casts them to the dtype of x, or quantises them, itself. The routing weight is applied before the down projection, so
that the experts' outputs need not be kept for its gradient, and the gathered rows are not kept either.

Legend: T tokens · K experts per token · R = T*K rows · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.dispatch.base import RowOrder, sum_slots
from parallel.sharding.local import local_part
from trainer.kernels import on_triton
from trainer.kernels.experts import fused_grouped_swiglu
from trainer.precision import wide


class _Gather(torch.autograd.Function):
    """x [T, H], weights [T, K] -> rows [R, H], row weights [R]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, order: RowOrder) -> tuple[Tensor, Tensor]:
        ctx.row_of_slot = order.row_of_slot
        return x.index_select(0, order.token_of_row), weights.flatten().index_select(0, order.slot_of_row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        d_rows, d_row_weight = grads
        slots = ctx.row_of_slot
        return sum_slots(d_rows, slots), d_row_weight.index_select(0, slots.flatten()).view_as(slots), None


class _Combine(torch.autograd.Function):
    """rows [R, H] -> [T, H], the sum of each token's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: RowOrder) -> Tensor:
        ctx.token_of_row = order.token_of_row
        return sum_slots(rows, order.row_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.token_of_row), None


class _GroupedSwiGLU(torch.autograd.Function):
    """Gather, two grouped GEMMs with the gated activation between them, sum.

    Saves x [T, H], the first GEMM's result and silu(gate): 3 I numbers a row, nothing [R, H]; backward gathers the rows
    once more. Everything elementwise works in place on tensors that this function owns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        weight_R1 = weights.to(x.dtype).flatten().index_select(0, order.slot_of_row).unsqueeze(-1)
        x_RH = x.index_select(0, order.token_of_row)
        hidden = F.grouped_mm(x_RH, w13.flatten(1, 2).transpose(1, 2), offs=order.offsets)
        gate, up = hidden.chunk(2, dim=-1)
        silu = F.silu(gate)
        weighted = (silu * up).mul_(weight_R1)
        ctx.save_for_backward(x, w13, w2, weight_R1, hidden, silu)
        ctx.order, ctx.weight_dtype = order, weights.dtype
        return sum_slots(F.grouped_mm(weighted, w2.transpose(1, 2), offs=order.offsets), order.row_of_slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, w13, w2, weight_R1, hidden, silu = ctx.saved_tensors
        order, slots = ctx.order, ctx.order.row_of_slot
        dy_RH = grads[0].index_select(0, order.token_of_row)  # contiguous: the grouped GEMM refuses an expanded one
        gate, up = hidden.chunk(2, dim=-1)
        d_weighted = F.grouped_mm(dy_RH, w2, offs=order.offsets)
        act = silu * up
        d_row_weight = (d_weighted * act).sum(-1, dtype=ctx.weight_dtype)
        d_w2 = F.grouped_mm(dy_RH.t(), act.mul_(weight_R1), offs=order.offsets)
        d_act = d_weighted.mul_(weight_R1)
        d_hidden = torch.empty_like(hidden)
        d_gate, d_up = d_hidden.chunk(2, dim=-1)
        torch.mul(d_act, silu, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d_act.mul_(up), gate, grad_input=d_gate)
        dx_RH = F.grouped_mm(d_hidden, w13.flatten(1, 2), offs=order.offsets)
        x_RH = x.index_select(0, order.token_of_row)
        d_w13 = F.grouped_mm(d_hidden.t(), x_RH, offs=order.offsets).view_as(w13)
        d_weights = d_row_weight.index_select(0, slots.flatten()).view_as(slots)
        return sum_slots(dx_RH, slots), d_weights, d_w13, d_w2, None


def loop_swiglu(x: Tensor, w13: Tensor, w2: Tensor, offsets: Tensor, row_weight: Tensor) -> Tensor:
    """The reference: one matmul after another through plain autograd, any dtype; copies the row counts to the host."""
    counts = offsets.diff(prepend=offsets.new_zeros(1)).tolist()
    weight_R1 = row_weight.to(x.dtype).unsqueeze(-1)
    # unbind, not w[e]: the backward of an index allocates the gradient of all experts for each expert.
    parts = []
    for rows, weight, (gate, up), down in zip(
        x.split(counts), weight_R1.split(counts), (w.unbind(0) for w in w13.unbind(0)), w2.unbind(0), strict=True
    ):
        parts.append(F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up) * weight, down))
    return torch.cat(parts)


class _BlockedSwiGLU(torch.autograd.Function):
    """Gather, experts and sum on a CPU, a few experts at a time, as torch's grouped GEMM there works inside.

    What lies between the matmuls of a block of experts happens while its rows are in cache, in scratch memory that the
    next block uses again. Saves x [T, H], the first GEMM's result and sigmoid(gate): 3 I numbers a row, nothing [R, H].
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
        blocks = _blocks(order.offsets)
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


class _Block(NamedTuple):
    """Consecutive experts whose rows are worked on together."""

    rows: slice
    experts: slice
    counts: list[int]  # rows of each of the experts


# Rows of a block: enough that the calls between matmuls do not count, few enough that they stay in a core's cache.
BLOCK_ROWS = 512


def _blocks(offsets: Tensor) -> list[_Block]:
    """Cut the experts into runs of at least BLOCK_ROWS rows; reads the offsets on the host."""
    ends, blocks, first, start = offsets.tolist(), [], 0, 0
    counts = [end - begin for begin, end in pairwise([0, *ends])]
    for expert, end in enumerate(ends):
        if end - start >= BLOCK_ROWS or expert == len(ends) - 1:
            blocks.append(_Block(slice(start, end), slice(first, expert + 1), counts[first : expert + 1]))
            first, start = expert + 1, end
    return blocks


def _each_mm(left: Sequence[Tensor], right: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    for a, b, result in zip(left, right, out, strict=True):
        torch.mm(a, b, out=result)


def _loop(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
    x_RH, weight_R = _Gather.apply(x, weights, order)
    return _Combine.apply(loop_swiglu(x_RH, w13.to(x.dtype), w2.to(x.dtype), order.offsets, weight_R), order)


def _grouped_mm(x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
    w13, w2 = w13.to(x.dtype), w2.to(x.dtype)
    if on_triton(x):
        return fused_grouped_swiglu(x, weights, w13, w2, order)
    return (_GroupedSwiGLU if x.is_cuda else _BlockedSwiGLU).apply(x, weights, w13, w2, order)


Backend = Callable[[Tensor, Tensor, Tensor, Tensor, RowOrder], Tensor]


@runtime_checkable
class QuantizedBackend(Protocol):
    """A back end of one layer that computes with quantised weights."""

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor: ...

    def hold_weights(self, hold: bool) -> None:
        """While they are held, weights do not change: they are quantised at their first use and kept. Otherwise at each
        use, and nothing is kept."""


# grouped_mm: torch's grouped GEMM (bf16) on CUDA, the loop that it is made of on a CPU (any dtype). loop: the
# reference.
BACKENDS: dict[str, Backend] = {"grouped_mm": _grouped_mm, "loop": _loop}


def make_backend(experts: str, backend: str) -> Backend:
    """What computes the experts of one layer.

    experts: as `precision.experts`. backend: a key of BACKENDS, for experts that are not quantised.
    """
    if experts in ("fp32", "bf16"):
        return BACKENDS[backend]
    if experts == "fp8_reference":
        from trainer.model.experts.fp8_reference import Fp8Reference

        return Fp8Reference()
    from trainer.model.experts.te.linear import TransformerEngine

    return TransformerEngine(experts)


def describe_backend(experts: str, backend: str, device: torch.device, on_a_rank: int) -> str:
    """What `make_backend` comes to on this machine, and why, for the log. on_a_rank: experts that a rank holds."""
    if experts == "fp8_reference":
        return "1x128 and 128x128 tiles in e4m3, multiplied in fp32 arithmetic: no speed is gained"
    if experts not in ("fp32", "bf16"):
        from trainer.model.experts.te.linear import TransformerEngine

        return TransformerEngine(experts).describe(on_a_rank)
    if backend == "grouped_mm" and device.type != "cuda":
        return "grouped_mm, as a blocked loop: a CPU has no grouped kernel"
    return f"{backend}, as model.expert_backend says"


class Experts(nn.Module):
    """E SwiGLU experts as two parameters: w13 [E, 2, I, H] (gate, up) and w2 [E, H, I].

    An expert that gets no row costs nothing and its gradient is zero. Where the parameters are spread over ranks they
    keep these shapes, and the arithmetic is done on this rank's part of them.
    """

    def __init__(self, num_experts: int, hidden_size: int, width: int, backend: str) -> None:
        super().__init__()
        self.w13 = nn.Parameter(torch.empty(num_experts, 2, width, hidden_size))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_size, width))
        self.backend = BACKENDS[backend]

    def forward(self, x: Tensor, weights: Tensor, order: RowOrder) -> Tensor:
        """x: [T, H]; weights: [T, K] routing weights; order: where each (token, slot) stands -> [T, H]."""
        return self.backend(x, weights, local_part(self.w13), local_part(self.w2), order)
