"""FP8 payload packed and unpacked in one Triton kernel each: a program takes a strip of one token's 1 x 128 tiles.

Legend: T tokens · H hidden size · C bytes of a row as it travels: H codes, one byte for each tile, zeros.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.fp8 import E4M3_MAX, TILE

TILES = 16  # of a program: 16 numbers a thread


@triton.jit
def pack_kernel(
    x: tl.tensor, out: tl.tensor, H: tl.constexpr, C: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, MOST: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    across: tl.constexpr = (H + TILE - 1) // TILE
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    column = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    numbers = tl.load(x + token * H + column, column < H, 0).to(tl.float32)
    # The largest |x| as an integer; infinity and NaN are above all finite numbers.
    amax = tl.max(numbers.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    most = tl.full([TILES], MOST, tl.float32)
    # Rounded as IEEE requires, unlike `/`; and at most the largest fp32.
    ratio = tl.minimum(tl.div_rn(most, amax.to(tl.float32, bitcast=True)), 3.4028234663852886e38)
    power = ratio.to(tl.int32, bitcast=True) & -0x800000
    power = tl.where((amax > 0) & (amax < 0x7F800000), power, 0x3F800000)
    scaled = numbers * power.to(tl.float32, bitcast=True)[:, None]
    # A comparison with NaN is false, so NaN stays NaN. The cast saturates finite numbers, but not infinities.
    scaled = tl.where(scaled > MOST, MOST, tl.where(scaled < -MOST, -MOST, scaled))
    tl.store(out + token * C + column, scaled.to(tl.float8e4nv).to(tl.uint8, bitcast=True), column < H)
    tl.store(out + token * C + H + tile, (power >> 23).to(tl.uint8), tile < across)
    if tl.program_id(1) == 0:
        rest = H + across + tl.arange(0, 8)
        tl.store(out + token * C + rest, tl.zeros([8], tl.uint8), rest < C)


@triton.jit
def unpack_kernel(
    packed: tl.tensor, out: tl.tensor, stride: int, H: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr
) -> None:
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    column = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    byte = tl.load(packed + token * stride + H + tile, tile * TILE < H, 127)
    scale = (byte.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    codes = tl.load(packed + token * stride + column, column < H, 0)
    values = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32) * tl.div_rn(1.0, scale)[:, None]
    tl.store(out + token * H + column, values, column < H)


def _grid(tokens: int, hidden: int) -> tuple[int, int]:
    return tokens, triton.cdiv(hidden, TILE * TILES)


def pack(x: Tensor) -> Tensor:
    """[T, H] -> uint8 [T, C]."""
    tokens, hidden = x.shape
    used = hidden + triton.cdiv(hidden, TILE)
    out = x.new_empty(tokens, used + -used % 8, dtype=torch.uint8)
    if tokens:
        pack_kernel[_grid(tokens, hidden)](
            x.contiguous(), out, H=hidden, C=out.shape[1], TILE=TILE, TILES=TILES, MOST=E4M3_MAX
        )
    return out


def unpack(packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
    """uint8 [T, C], with any stride between rows -> [T, H]."""
    out = packed.new_empty(len(packed), hidden, dtype=dtype)
    if len(packed):
        assert packed.stride(1) == 1
        unpack_kernel[_grid(len(packed), hidden)](packed, out, packed.stride(0), H=hidden, TILE=TILE, TILES=TILES)
    return out
