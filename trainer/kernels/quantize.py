"""Tokens to e4m3 codes and power-of-two scales, for what travels between ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.fp8 import TILE, dequantize_tiles, quantize_tiles
from trainer.kernels import on_triton


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`parallel.fp8.quantize_tiles(x, (1, 128))`, by a Triton kernel where these are in use; bitwise the same.

    Args: x: [..., C], any float dtype.
    Returns: codes float8_e4m3fn [..., C], scale fp32 [..., ceil(C / 128)].

    A number in bf16 is 3 bytes: it is read once, its code written once; the twin's passes over fp32 move 51.
    """
    if on_triton(x):
        from trainer.kernels import triton_quantize

        return triton_quantize.quantize(x)
    return quantize_tiles(x, (1, TILE))


def dequantize_rows(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`parallel.fp8.dequantize_tiles(codes, scale, (1, 128), dtype)`, likewise: 3 bytes a number to bf16; the twin's
    passes move 19."""
    if on_triton(codes):
        from trainer.kernels import triton_quantize

        return triton_quantize.dequantize(codes, scale, dtype)
    return dequantize_tiles(codes, scale, (1, TILE), dtype)
