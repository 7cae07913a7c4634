"""The model's operations with rows that do not depend on each other.

Legend: P padded rows · E experts · M inner dimension · N columns · I expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from trainer.model.exact.blocks import EXPERT_ROWS, BlockLinear, block_linear
from trainer.model.exact.compiled import compiles, expert_products, select, swiglu
from trainer.model.numerics import router_weights, wide
from trainer.model.ops import Ops

# Experts are multiplied together where they have fewer blocks than FEW each and more than this share of them has any.
FEW, MOST = 4, 0.6


class ExactOps(Ops):
    """`Ops` by row blocks, in plain torch."""

    def fuses(self, x: Tensor) -> bool:
        return True  # so that `FusedGroupedMM` takes the operations below on any device

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        found: Tensor = BlockLinear.apply(x, weight) if torch.is_grad_enabled() else block_linear(x, weight)
        return found

    def pad_order(self, order: RowOrder, align: int) -> PaddedOrder:
        """align: 1, or a multiple of `EXPERT_ROWS`."""
        return PaddedOrder(order, max(align, EXPERT_ROWS))

    def grouped_mm(self, rows: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
        if compiles(rows):
            return expert_products(rows, matrices, offsets)
        found = rows.new_empty(len(rows), matrices.shape[2])
        blocks, out = rows.view(-1, EXPERT_ROWS, rows.shape[1]), found.view(-1, EXPERT_ROWS, found.shape[1])
        ends = [end // EXPERT_ROWS for end in offsets.tolist()]
        starts = [0, *ends[:-1]]
        busy = [expert for expert, (start, end) in enumerate(zip(starts, ends, strict=True)) if end > start]
        if ends[-1] < FEW * len(ends) and len(busy) > MOST * len(ends):
            # The first block of every expert in one product: for few rows, a call for each expert costs more.
            first = torch.tensor(starts, device=rows.device).clamp_(max=len(blocks) - 1)
            products = torch.bmm(blocks.index_select(0, first), matrices)
            if len(busy) < len(ends):
                used = torch.tensor(busy, device=rows.device)
                first, products = first.index_select(0, used), products.index_select(0, used)
            out.index_copy_(0, first, products)
            starts = [start + 1 for start in starts]
        for expert in busy:
            start, end = starts[expert], ends[expert]
            if end > start:
                matrix = matrices[expert : expert + 1].expand(end - start, -1, -1)
                torch.bmm(blocks[start:end], matrix, out=out[start:end])
        return found

    def route(
        self, logits: Tensor, groups: int, experts_per_token: int, gradient: str, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        if not compiles(logits):
            return super().route(logits, groups, experts_per_token, gradient, temperature)
        ids = select(logits.detach(), groups, experts_per_token)
        return ids, router_weights(logits, ids, gradient, temperature)

    def _swiglu_forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        if compiles(hidden):
            return swiglu(hidden, weight.float())
        gate, up = hidden.to(wide(hidden.dtype)).chunk(2, dim=-1)
        # Not F.silu: on a CPU the last numbers of a tensor go through another exponential than those before.
        silu = gate / torch.exp(-gate).add_(1)
        return silu.mul_(up).mul_(weight.unsqueeze(-1)).to(hidden.dtype)


EXACT = ExactOps()
