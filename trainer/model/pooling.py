"""Means over the tokens of documents and images.

Legend: T tokens · D documents · P pieces · H width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 32  # tokens that are added one after another in their own dtype


def means(x_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean over each document's tokens. x_TH: [T, H]; cu_seqlens: [D + 1] on the CPU, no document empty -> [D, H].

    A document is summed in pieces, and these in fp64: one token after another in fp32 would be off by 3e-4 after 32,768
    of them.
    """
    lengths_D = cu_seqlens.diff().long()
    pieces_D = (lengths_D + (PIECE - 1)) // PIECE
    first_D = pieces_D.cumsum(0) - pieces_D
    offset_D = cu_seqlens[:-1] - PIECE * first_D
    start_P = offset_D.repeat_interleave(pieces_D) + PIECE * torch.arange(int(pieces_D.sum()))
    sum_DH = _sums(_sums(x_TH, start_P).double(), first_D)
    return (sum_DH / lengths_D.unsqueeze(-1).to(x_TH.device)).to(x_TH.dtype)


def _sums(x_NH: Tensor, starts: Tensor) -> Tensor:
    """Sums of consecutive rows, from each start to the next. Deterministic on a GPU too, unlike index_add."""
    rows_N = torch.arange(len(x_NH), device=x_NH.device)
    return F.embedding_bag(rows_N, x_NH, starts.to(x_NH.device), mode="sum")
