"""FP8 with block scaling: a power of two for each tile of a matrix brings its largest number just below 448.

    scale = 2^floor(log2(fl32(448 / amax)))       amax: the largest |x| of the tile
    code  = e4m3(x * scale)                       round to nearest even, saturate at 448
    value = code / scale

e4m3 has 4 bits of exponent and 3 of mantissa: 448 is its largest number, 2^-6 its smallest with all 4 significant bits,
2^-9 its smallest. A power of two as scale adds no rounding of its own: only the codes round, a value has 4 significant
bits, and quantising values again does not change them. A tile's largest number is between 224 and 448 when scaled, so
numbers larger than 2^-13 of it keep all 4 bits.

The GEMMs of Transformer Engine's `Float8BlockScaling` sum along tiles of 128: rows of activations and of gradients are
cut into 1 x 128, weights into 128 x 128, and what the weight gradient sums over (rows, again) into 128 x 1.
`docs/fp8.md` lists which tensor gets which.

Source: Transformer Engine 2.20, `compute_scale_from_amax` in common/recipe/recipe_common.cuh, with its defaults
(power-of-two scales, epsilon 0). One difference: its kernels ignore NaN in the search for the largest number, here a
tile with a NaN has scale 1; in both cases the NaN stays NaN, and the step is skipped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3_MAX = 448.0
TILE = 128

_MANTISSA_OFF = -0x00800000  # sign and exponent of an fp32, as an int32


def quantize_tiles(x: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Codes and scales of the tiles of each matrix.

    Args: x: [..., R, C], any float dtype; rounded to fp32 first where it is wider. tile: rows and columns of a tile;
        the last ones of a matrix may be shorter.
    Returns: codes float8_e4m3fn, of the shape of x; scale fp32 [..., ceil(R / rows), ceil(C / columns)], by which x is
        multiplied before it is rounded: a power of two from 2^-120 to 2^127, and 1 where a tile's largest number is 0,
        infinite or NaN. Infinities become 448, NaN stays NaN.
    """
    tiles = _split_into_tiles(x.float(), tile)
    scale = _scale(tiles)
    # The cast of numbers that are too large saturates in some versions of torch and gives NaN in others.
    codes = (tiles * scale).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return _join_tiles(codes, x.shape), scale.squeeze((-3, -1))


def dequantize_tiles(codes: Tensor, scale: Tensor, tile: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """codes [..., R, C] and scale as `quantize_tiles` returns them -> values [..., R, C] in `dtype`.

    Exact in fp32; exact in bf16 too, except below its smallest number, 2^-133.
    """
    tiles = _split_into_tiles(codes.float(), tile)
    return _join_tiles(tiles.mul_(scale.reciprocal()[..., :, None, :, None]), codes.shape).to(dtype)


def fake_quantize(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """x [..., R, C] quantised and dequantised: `dequantize_tiles(*quantize_tiles(x, tile), tile, x.dtype)`, except
    that a zero may lose its sign. No gradient."""
    with torch.no_grad():
        tiles = _split_into_tiles(x.float(), tile)
        scale = _scale(tiles)
        return _join_tiles(_round_e4m3(tiles * scale).mul_(scale.reciprocal_()), x.shape).to(x.dtype)


def scale_to_byte(scale: Tensor) -> Tensor:
    """Powers of two in fp32 -> uint8: their exponent as stored in fp32 (127 for 1)."""
    return (scale.view(torch.int32) >> 23).to(torch.uint8)


def scale_from_byte(byte: Tensor) -> Tensor:
    """The inverse of `scale_to_byte`."""
    return (byte.to(torch.int32) << 23).view(torch.float32)


def _scale(tiles: Tensor) -> Tensor:
    """fp32 [..., r, rows, c, columns] -> [..., r, 1, c, 1]."""
    amax = tiles.abs().amax((-3, -1), keepdim=True)
    # Dividing two tensors rounds once. A Python number over a tensor is computed as the number times a reciprocal.
    ratio = torch.full_like(amax, E4M3_MAX) / amax
    # Where the ratio is too large for fp32 (amax below 1.75 * 2^-120), the largest power of two in fp32.
    bits = ratio.clamp_(max=torch.finfo(torch.float32).max).view(torch.int32).bitwise_and_(_MANTISSA_OFF)
    return torch.where((amax > 0) & (amax < torch.inf), bits.view(torch.float32), 1.0)


def _round_e4m3(x: Tensor) -> Tensor:
    """Round fp32 to the nearest e4m3, ties to even, saturating, in place. On a CPU this takes a third of the time of a
    cast to float8_e4m3fn and back.

    Adding 1.5 * 2^20 times a number's power of two leaves room for 3 bits of its mantissa and makes the processor round
    off the others; subtracting it again is exact. Below 2^-6 the numbers of e4m3 are 2^-9 apart.
    """
    x.clamp_(-E4M3_MAX, E4M3_MAX)
    power = x.view(torch.int32).bitwise_and(0x7F800000).view(torch.float32)
    large = power.clamp_(min=2.0**-6).mul_(1.5 * 2**20)
    return x.add_(large).sub_(large)


def _split_into_tiles(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """[..., R, C] -> [..., r, rows, c, columns], with zeros where the last tiles are shorter."""
    # A tile larger than the matrix is cut to the matrix.
    rows, columns = (max(1, min(size, most)) for size, most in zip(x.shape[-2:], tile, strict=True))
    below, beside = -x.shape[-2] % rows, -x.shape[-1] % columns
    if below or beside:
        x = F.pad(x, (0, beside, 0, below))
    down, across = x.shape[-2] // rows, x.shape[-1] // columns
    return x.unflatten(-1, (across, columns)).unflatten(-3, (down, rows))


def _join_tiles(tiles: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_split_into_tiles`."""
    return tiles.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]]
