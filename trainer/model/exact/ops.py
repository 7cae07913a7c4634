"""The model's operations with rows that do not depend on each other.

Legend: P padded rows · E experts · M inner dimension · N columns · I expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from trainer.model.exact.blocks import EXPERT_ROWS, BlockLinear, block_mm
from trainer.model.numerics import wide
from trainer.model.ops import Ops


class ExactOps(Ops):
    """`Ops` by row blocks, in plain torch."""

    def fuses(self, x: Tensor) -> bool:
        return True  # so that `FusedGroupedMM` takes the operations below on any device

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        found: Tensor = BlockLinear.apply(x, weight)
        return found

    def pad_order(self, order: RowOrder, align: int) -> PaddedOrder:
        """align: 1, or a multiple of `EXPERT_ROWS`."""
        return PaddedOrder(order, max(align, EXPERT_ROWS))

    def grouped_mm(self, rows: Tensor, matrices: Tensor, offsets: Tensor) -> Tensor:
        found, start = rows.new_empty(len(rows), matrices.shape[2]), 0
        for matrix, end in zip(matrices.unbind(), offsets.tolist(), strict=True):
            if end > start:
                block_mm(rows[start:end], matrix, EXPERT_ROWS, out=found[start:end])
            start = end
        return found

    def _swiglu_forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        gate, up = hidden.to(wide(hidden.dtype)).chunk(2, dim=-1)
        # Not F.silu: on a CPU the last numbers of a tensor go through another exponential than those before.
        silu = gate / torch.exp(-gate).add_(1)
        return silu.mul_(up).mul_(weight.unsqueeze(-1)).to(hidden.dtype)


EXACT = ExactOps()
