"""The experts' frozen matrices in FP8.

Legend: P rows, sorted by expert · M inputs · N outputs · E experts · T tokens · H hidden size · I expert width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.dispatch.base import RowOrder
from trainer.model.experts.fp8_reference import across, square
from trainer.model.frozen.blocks import Blocks, dequantize
from trainer.model.lora.gemm import FrozenProducts, GroupedProducts, LoopProducts, Products, Rows
from trainer.model.ops import TORCH, Ops

TILE_BYTES = 256 << 20  # of values that exist at one time, or one expert's: GEMMs of several experts fill a GPU


class ScaledProducts(nn.Module):
    """`FrozenProducts` with a weight [E, N, M] of codes; holds their scales [E, r, c], fp32.

    A few experts at a time are dequantised in the dtype of the rows and multiplied, forward and backward: values of
    `TILE_BYTES` exist, and no transpose, as a GEMM in bf16 or fp32 reads a matrix in either orientation. reference:
    with the roundings of `precision.experts=fp8_reference`, in fp32. Waits for the device once for each product, for
    the numbers of its rows.
    """

    align = 1
    scales: Tensor

    def __init__(
        self, experts: int, blocks: Blocks, *, reference: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.reference = reference
        self.place(range(experts), blocks, device)

    def place(self, experts: range, blocks: Blocks, device: torch.device | str | None = None) -> None:
        """Make room for the scales of these experts, by number in the whole model. device: None for the present one."""
        device = device or self.scales.device
        self.experts, self.blocks = experts, blocks
        self.register_buffer("scales", torch.empty(len(experts), *blocks.shape, device=device), persistent=False)

    def forward(self, x: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        out = x.new_empty(len(x), weight.shape[1])
        for block in self._blocks(weight, x.dtype, rows):
            self._multiply(x, self._values(weight, block, x.dtype).mT, block, products, out)
        return rows.padded.zero_tail(out)

    def input_gradient(self, dy: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        out = dy.new_empty(len(dy), weight.shape[2])
        for block in self._blocks(weight, dy.dtype, rows):
            self._multiply(dy, self._values(weight, block, dy.dtype), block, products, out)
        return rows.padded.zero_tail(out)

    def _blocks(self, weight: Tensor, dtype: torch.dtype, rows: Rows) -> Iterator[Experts]:
        """Consecutive experts that have rows, whose values fit into `TILE_BYTES`."""
        itemsize = torch.float32.itemsize if self.reference else dtype.itemsize
        yield from consecutive(rows, TILE_BYTES // (weight[0].numel() * itemsize))

    def _values(self, weight: Tensor, block: Experts, dtype: torch.dtype) -> Tensor:
        experts = block.experts
        values = dequantize(
            weight[experts], self.scales[experts], self.blocks, torch.float32 if self.reference else dtype
        )
        return square(values.to(dtype)) if self.reference else values

    def _multiply(self, x: Tensor, matrices: Tensor, block: Experts, products: Products, out: Tensor) -> None:
        here = slice(block.bounds[0], block.bounds[-1])
        x_b = across(x[here]) if self.reference else x[here]
        if isinstance(products, GroupedProducts):
            ends = torch.tensor(block.bounds[1:], dtype=torch.int32).sub_(block.bounds[0])
            out[here] = F.grouped_mm(x_b, matrices, offs=ends.to(x.device, non_blocking=True))
            return
        for matrix, (start, stop) in zip(matrices, pairwise(block.bounds), strict=True):
            part = slice(start - here.start, stop - here.start)
            if x_b.dtype == out.dtype:
                torch.mm(x_b[part], matrix, out=out[start:stop])
            else:
                out[start:stop] = x_b[part] @ matrix


class Experts(NamedTuple):
    """Consecutive experts; bounds: where the rows of each start, and where those of the last one end."""

    experts: slice
    bounds: list[int]


def consecutive(rows: Rows, most: int, align: int = 1) -> Iterator[Experts]:
    """At most `most` experts at a time, one at least, without those at a time that have no rows. align: each expert's
    rows are padded to a multiple of it. Reads the numbers of rows on the host."""
    ends = rows.order.ends()
    counts = (-(-(end - start) // align) * align for start, end in pairwise([0, *ends]))
    bounds, most = [0, *accumulate(counts)], max(1, most)
    for first in range(0, len(ends), most):
        last = min(first + most, len(ends))
        if bounds[last] > bounds[first]:
            yield Experts(slice(first, last), bounds[first : last + 1])


class ReferenceProducts:
    """`FrozenProducts` of matrices that are stored unquantised, with the roundings of
    `precision.experts=fp8_reference`."""

    align = 1

    def forward(self, x: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        return products.times(across(x), square(weight.to(x.dtype)).mT, rows).to(x.dtype)

    def input_gradient(self, dy: Tensor, weight: Tensor, rows: Rows, products: Products) -> Tensor:
        return products.times(across(dy), square(weight.to(dy.dtype)), rows).to(dy.dtype)


class FrozenExperts(nn.Module):
    """A back end without adapters and without gradients of w13 and w2: `trainer.model.experts.base.Backend`.

    up, down: the products with w13 and w2. products, known: as for `AdaptedExperts`. Keeps the result of the first
    product, 2 I numbers a row.
    """

    def __init__(self, up: FrozenProducts, down: FrozenProducts, ops: Ops = TORCH) -> None:
        super().__init__()
        self.up, self.down, self.ops = up, down, ops
        self.products: Products | None = None
        self.known: Callable[[RowOrder], RowOrder] | None = None

    def forward(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        return _FrozenSwiGLU.apply(x, weights, w13.detach(), w2.detach(), order, self)

    def lay_out(self, order: RowOrder) -> Rows:
        order = order if self.known is None else self.known(order)
        return Rows(order, self.ops.pad_order(order, max(self.up.align, self.down.align)))

    def products_for(self, x: Tensor) -> Products:
        if self.products is not None:
            return self.products
        return GroupedProducts(self.ops) if x.is_cuda else LoopProducts()


class _FrozenSwiGLU(torch.autograd.Function):
    """Codes are kept outside of what autograd saves, so that nothing moves them as activations."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder, experts: FrozenExperts
    ) -> Tensor:
        rows, mm = experts.lay_out(order), experts.products_for(x)
        row_weight = rows.padded.gather_weights(weights)
        hidden = experts.up.forward(rows.padded.gather(x), w13.flatten(1, 2), rows, mm)
        act = experts.ops.weighted_swiglu(hidden, row_weight)
        y_PH = experts.down.forward(act, w2, rows, mm)
        ctx.save_for_backward(row_weight, hidden)
        ctx.frozen, ctx.rows, ctx.mm, ctx.experts = (w13, w2), rows, mm, experts
        return rows.padded.combine(y_PH)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        row_weight, hidden = ctx.saved_tensors
        (w13, w2), rows, mm, experts = ctx.frozen, ctx.rows, ctx.mm, ctx.experts
        d_act = experts.down.input_gradient(rows.padded.gather(grads[0].contiguous()), w2, rows, mm)
        _, d_hidden, d_row_weight = experts.ops.swiglu_gradients(hidden, row_weight, d_act)
        dx_PH = experts.up.input_gradient(d_hidden, w13.flatten(1, 2), rows, mm)
        return rows.padded.combine(dx_PH), d_row_weight[rows.padded.row_of_slot], None, None, None, None
