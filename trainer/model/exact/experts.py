"""Experts outside autograd, with the bits of `FusedGroupedMM` with `ExactOps`: compiled, or a few tokens in the same
blocks.

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
from trainer.model.exact.compiled import compiles, mixture
from trainer.model.exact.ops import MOST, ExactOps
from trainer.model.experts.fused_grouped_mm import FusedGroupedMM

FEW_TOKENS = 128


class ExactExperts(FusedGroupedMM):
    """A back end in exact arithmetic, see `trainer.model.experts.base.Backend`."""

    def __init__(self, ops: ExactOps) -> None:
        super().__init__(ops)
        self.exact = ops

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor:
        if not torch.is_grad_enabled() and compiles(x):
            return mixture(x, order.ids, weights, w13.to(x.dtype).flatten(1, 2).mT, w2.to(x.dtype).mT)
        # A device would have to be waited for.
        if torch.is_grad_enabled() or len(x) > FEW_TOKENS or x.is_cuda:
            return super().__call__(x, weights, w13, w2, order)
        return self._few(x, weights, w13.to(x.dtype).flatten(1, 2).mT, w2.to(x.dtype).mT, order.ids)

    def _few(self, x: Tensor, weights: Tensor, first: Tensor, second: Tensor, ids: Tensor) -> Tensor:
        """first: [E, H, 2I]. second: [E, I, H]. ids: [T, K]."""
        (tokens, slots), experts = ids.shape, len(first)
        chosen = torch.zeros(tokens, experts, dtype=torch.int64).scatter_(1, ids, 1)
        places = chosen.cumsum(0)  # of each token among its expert's rows, counted from 1
        blocks = _Blocks(places[-1].tolist())
        row_TK = places.gather(1, ids)
        starts = ids * EXPERT_ROWS
        if blocks.late:
            later = torch.tensor(blocks.later).index_select(0, ids.flatten()).view_as(ids)
            starts = torch.where(row_TK <= EXPERT_ROWS, starts, later) if blocks.together else later
        row_TK += starts
        row = row_TK.sub_(1).flatten()
        rows = x.new_zeros(blocks.rows, x.shape[1])
        rows.index_copy_(0, row, x.unsqueeze(1).expand(-1, slots, -1).reshape(-1, x.shape[1]))
        row_weight = weights.new_zeros(blocks.rows).index_copy_(0, row, weights.flatten())
        act = self.exact._swiglu_forward(blocks.times(rows, first), row_weight)
        return sum_slots(blocks.times(act, second), row_TK)


class _Blocks:
    """The order of the experts' blocks. counts: rows of each expert.

    together: the first block of every expert comes first, as they are multiplied in one product. late: the other blocks
    as (expert, first, last exclusive). later: what an expert's place, counted from 1, lacks to its row in late blocks,
    plus one. rows: of all blocks.
    """

    def __init__(self, counts: list[int]) -> None:
        self.experts = len(counts)
        self.together = sum(count > 0 for count in counts) > MOST * len(counts)
        done = EXPERT_ROWS if self.together else 0  # rows of each expert that are in no late block
        block = self.experts if self.together else 0
        self.late: list[tuple[int, int, int]] = []
        self.later = [0] * len(counts)
        for expert, count in enumerate(counts):
            if count > done:
                self.later[expert] = block * EXPERT_ROWS - done
                end = block - (done - count) // EXPERT_ROWS
                self.late.append((expert, block, end))
                block = end
        self.rows = block * EXPERT_ROWS

    def times(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """rows: [R, M]. matrices: [E, M, N] -> [R, N]."""
        cut = rows.view(-1, EXPERT_ROWS, rows.shape[1])
        if self.together and not self.late:
            return torch.bmm(cut, matrices).flatten(0, 1)
        found = rows.new_empty(len(cut), EXPERT_ROWS, matrices.shape[2])
        if self.together:
            torch.bmm(cut[: self.experts], matrices, out=found[: self.experts])
        for expert, start, end in self.late:
            matrix = matrices[expert : expert + 1]
            if end > start + 1:
                matrix = matrix.expand(end - start, -1, -1)
            torch.bmm(cut[start:end], matrix, out=found[start:end])
        return found.flatten(0, 1)
