"""Triton kernels behind `trainer.kernels.quantize`: each program a strip of 1 x 128 tiles.

Legend: R rows · C columns · N = R * ceil(C / 128) tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.fp8 import E4M3_MAX, TILE

TILES = 16  # of a program: 16 numbers a thread


@triton.jit
def quantize_kernel(
    x: tl.tensor, codes: tl.tensor, scales: tl.tensor, tiles: int,
    WIDTH: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr, MOST: tl.constexpr,
) -> None:  # fmt: skip
    across: tl.constexpr = (WIDTH + TILE - 1) // TILE
    tile = tl.program_id(0).to(tl.int64) * TILES + tl.arange(0, TILES)
    column = (tile % across)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    here = (tile // across)[:, None] * WIDTH + column
    inside = (tile[:, None] < tiles) & (column < WIDTH)
    numbers = tl.load(x + here, inside, 0).to(tl.float32)
    # The largest |x| as an integer, where infinity and NaN stand above the rest.
    amax = tl.max(numbers.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    most = tl.full([TILES], MOST, tl.float32)
    ratio = tl.minimum(tl.div_rn(most, amax.to(tl.float32, bitcast=True)), 3.4028234663852886e38)
    power = (ratio.to(tl.int32, bitcast=True) & -0x800000).to(tl.float32, bitcast=True)
    scale = tl.where((amax > 0) & (amax < 0x7F800000), power, 1.0)
    scaled = numbers * scale[:, None]
    # A comparison with NaN is false, so NaN stays. The cast saturates too, but only here does an infinity.
    scaled = tl.where(scaled > MOST, MOST, tl.where(scaled < -MOST, -MOST, scaled))
    tl.store(codes + here, scaled.to(tl.float8e4nv), inside)
    tl.store(scales + tile, scale, tile < tiles)


@triton.jit
def dequantize_kernel(
    codes: tl.tensor, scales: tl.tensor, out: tl.tensor, tiles: int,
    WIDTH: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
) -> None:  # fmt: skip
    across: tl.constexpr = (WIDTH + TILE - 1) // TILE
    tile = tl.program_id(0).to(tl.int64) * TILES + tl.arange(0, TILES)
    column = (tile % across)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    here = (tile // across)[:, None] * WIDTH + column
    inside = (tile[:, None] < tiles) & (column < WIDTH)
    scale = tl.load(scales + tile, tile < tiles, 1.0)
    values = tl.load(codes + here, inside).to(tl.float32) * tl.div_rn(1.0, scale)[:, None]
    tl.store(out + here, values, inside)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., C] -> codes float8_e4m3fn [..., C], scale fp32 [..., ceil(C / 128)]."""
    codes = torch.empty_like(x, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    scales = x.new_empty(*x.shape[:-1], triton.cdiv(x.shape[-1], TILE), dtype=torch.float32)
    if x.numel():
        quantize_kernel[(triton.cdiv(scales.numel(), TILES),)](
            x.contiguous(), codes, scales, scales.numel(), WIDTH=x.shape[-1], TILE=TILE, TILES=TILES, MOST=E4M3_MAX
        )
    return codes, scales


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse, in `dtype`."""
    out = torch.empty_like(codes, dtype=dtype, memory_format=torch.contiguous_format)
    if codes.numel():
        dequantize_kernel[(triton.cdiv(scales.numel(), TILES),)](
            codes.contiguous(), scales.contiguous(), out, scales.numel(), WIDTH=codes.shape[-1], TILE=TILE, TILES=TILES
        )
    return out
