"""Experts for a few tokens outside autograd, in the same blocks as `FusedGroupedMM` with `ExactOps`.

Most steps of generation have a few rows an expert, so that their time is that of reading the weights and of calling
operations. No order of rows is sorted here: a row's place in its expert's blocks is the number of tokens before it that
chose the same expert. Rows of blocks that no token has hold zeros.

Legend: T tokens · K experts per token · E experts · R rows of all blocks · I expert width · H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder, sum_slots
from trainer.model.exact.blocks import EXPERT_ROWS
from trainer.model.exact.ops import MOST, ExactOps
from trainer.model.experts.fused_grouped_mm import FusedGroupedMM

FEW_TOKENS = 128


class ExactExperts(FusedGroupedMM):
    """A back end in exact arithmetic, see `trainer.model.experts.base.Backend`."""

    def __init__(self, ops: ExactOps) -> None:
        super().__init__(ops)
        self.exact = ops

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        # A device would have to be waited for.
        if torch.is_grad_enabled() or len(x) > FEW_TOKENS or x.is_cuda:
            return super().__call__(x, weights, w13, w2, order)
        return self._few(x, weights, w13.to(x.dtype).flatten(1, 2).mT, w2.to(x.dtype).mT, order.ids)

    def _few(self, x: Tensor, weights: Tensor, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
        """first: [E, H, 2I]. second: [E, I, H]. ids: [T, K]."""
        (tokens, slots), experts = ids.shape, len(first)
        chosen = torch.zeros(tokens, experts, dtype=torch.int64).scatter_(1, ids, 1)
        before = chosen.cumsum(0)
        counts: list[int] = before[-1].tolist()
        busy = sum(count > 0 for count in counts)
        together = busy > MOST * experts and max(counts) <= EXPERT_ROWS
        blocks = [1] * experts if together else [-(-count // EXPERT_ROWS) for count in counts]
        starts, end = [], -1  # places count from 1
        for more in blocks:
            starts.append(end)
            end += more * EXPERT_ROWS
        row_TK = before.add_(torch.tensor(starts)).gather(1, ids)
        row = row_TK.flatten()
        rows = x.new_zeros(end + 1, x.shape[1]).index_copy_(0, row, x.repeat_interleave(slots, 0))
        row_weight = weights.new_zeros(end + 1).index_copy_(0, row, weights.flatten())
        hidden = _products(rows, first, blocks, together)
        act = self.exact._swiglu_forward(hidden, row_weight)
        return sum_slots(_products(act, second, blocks, together), row_TK)


def _products(rows: Tensor, matrices: Tensor, blocks: list[int], together: bool) -> Tensor:
    """rows: [R, M]. matrices: [E, M, N]. blocks: of each expert; together: one each -> [R, N]."""
    cut = rows.view(-1, EXPERT_ROWS, rows.shape[1])
    if together:
        return torch.bmm(cut, matrices).flatten(0, 1)
    found = rows.new_empty(len(cut), EXPERT_ROWS, matrices.shape[2])
    parts = zip(cut.split(blocks), found.split(blocks), blocks, matrices.split(1), strict=True)
    for some, out, count, matrix in parts:
        if count:
            torch.bmm(some, matrix if count == 1 else matrix.expand(count, -1, -1), out=out)
    return found.flatten(0, 1)
