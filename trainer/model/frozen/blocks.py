"""Matrices in FP8 with a scale for each block, as they are stored.

Legend: R rows · C columns · r, c blocks of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from parallel.fp8 import TILE

CODES = torch.uint8  # e4m3 bit patterns: collectives and FSDP leave bytes as they are, and would round numbers


@dataclass(frozen=True)
class Blocks:
    """The blocks of a matrix [R, C] that is made of stored matrices one below the other.

    rows: of each stored matrix, those that are here, in its own numbers; blocks start at its row 0. columns: the same
    for their columns. Ranks that share a width hold parts that may start inside a block.
    """

    rows: tuple[range, ...]
    columns: range

    @property
    def shape(self) -> tuple[int, int]:
        """r, c."""
        return sum(map(_count, self.rows)), _count(self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """R, C."""
        return sum(map(len, self.rows)), len(self.columns)

    def rows_of(self, part: int) -> slice:
        """The block rows of one stored matrix."""
        ends = list(accumulate(map(_count, self.rows)))
        return slice(ends[part] - _count(self.rows[part]), ends[part])

    @property
    def even(self) -> bool:
        """True if all blocks are here whole."""
        return all(part.start % TILE == 0 and len(part) % TILE == 0 for part in (*self.rows, self.columns))

    def row_numbers(self, device: torch.device) -> Tensor:
        """[R]: the block row of each row."""
        return _numbers(self.rows, device)

    def column_numbers(self, device: torch.device) -> Tensor:
        """[C]: the block column of each column."""
        return _numbers((self.columns,), device)


def dequantize(codes: Tensor, scales: Tensor, blocks: Blocks, dtype: torch.dtype) -> Tensor:
    """Codes [..., R, C] uint8 times scales [..., r, c] fp32 -> values in `dtype`, rounded once.

    Exact in fp32 and bf16 where scales are powers of two. Allocates the result, and where blocks are cut by an edge the
    scale of each value.
    """
    values = codes.view(torch.float8_e4m3fn).to(dtype)
    r, c = scales.shape[-2:]
    if blocks.even:
        tiles = values.unflatten(-1, (c, TILE)).unflatten(-3, (r, TILE))
        tiles.mul_(scales[..., :, None, :, None])
        return values
    spread = scales.index_select(-2, blocks.row_numbers(codes.device))
    return values.mul_(spread.index_select(-1, blocks.column_numbers(codes.device)))


def _count(part: range) -> int:
    return -(-part.stop // TILE) - part.start // TILE if len(part) else 0


def _numbers(parts: Iterable[range], device: torch.device) -> Tensor:
    found, first = [], 0
    for part in parts:
        inside = torch.arange(part.start, part.stop, device=device).div(TILE, rounding_mode="floor")
        found.append(inside + (first - part.start // TILE))
        first += _count(part)
    return torch.cat(found) if len(found) > 1 else found[0]


def whole(rows: Sequence[int], columns: int) -> Blocks:
    """The blocks of whole stored matrices with these numbers of rows."""
    return Blocks(tuple(range(size) for size in rows), range(columns))
