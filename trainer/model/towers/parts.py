"""Parts that towers share: the patch embedding, attention inside packed images, patches in blocks.

Legend: T patches of all images · W width of the tower · h heads · d head dimension · C channels · P patch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one linear over flattened patches: weight [W, C, ..., P, P]."""

    def __init__(self, width: int, *patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, *patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, patches: Tensor) -> Tensor:
        """patches: [..., C * ... * P * P], any float dtype -> [..., W] in the dtype of the weight."""
        return F.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


def full_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention of every patch to all patches of its image.

    Args: q, k, v: [T, h, d]. lengths: patches of each image, in order; they add up to T.
    Returns: [T, h, d]. Neighbours of equal length share a call of SDPA.
    """
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    parts = []
    for run, *qkv in zip(runs, *(x.split(sizes) for x in (q, k, v)), strict=True):
        q_nhTd, k_nhTd, v_nhTd = (x.unflatten(0, run[::-1]).transpose(1, 2) for x in qkv)
        parts.append(F.scaled_dot_product_attention(q_nhTd, k_nhTd, v_nhTd).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def in_blocks(x: Tensor, side: int) -> Tensor:
    """Patches of an image reordered block by block, row-major inside a block and over blocks.

    Args: x: [..., rows, columns, W]; side: patches a side of a block, divides rows and columns.
    Returns: [..., rows * columns, W].
    """
    rows, columns = x.shape[-3:-1]
    x = x.unflatten(-2, (columns // side, side)).unflatten(-4, (rows // side, side))
    return x.transpose(-4, -3).flatten(-5, -2)
