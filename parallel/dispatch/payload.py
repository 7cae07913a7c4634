"""How hidden states travel between ranks: as they are, cast to another dtype, or as FP8 codes with their scales.

Legend: T tokens · H hidden size · C columns of what travels.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.fp8 import TILE, dequantize_tiles, quantize_tiles, scale_from_byte, scale_to_byte

_ROW = (1, TILE)


class Payload(Protocol):
    """The gradient goes straight through what is lost in packing."""

    def pack(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, C] of a dtype that collectives know; beside its rows others of 4 and 8 bytes a number have to
        find their place in memory."""
        ...

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        """Rows of any ranks as `pack` made them -> [T, hidden] in `dtype`."""
        ...

    def of_gradients(self) -> Payload:
        """What the gradients of results travel as, which one all-gather sends to the experts in backward."""
        ...


class Cast:
    """Hidden states in `dtype`, gradients in their own. dtype: None: both in their own."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def pack(self, x: Tensor) -> Tensor:
        return x.to(self.dtype or x.dtype)

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        return packed.to(dtype)

    def of_gradients(self) -> Payload:
        return Cast()


class Fp8:
    """Hidden states and the gradients of results in e4m3, with a power of two for each 128 numbers of a token.

    A row is H codes and a byte for each scale, its exponent; zeros fill it up to a multiple of 8 bytes. With H a
    multiple of 1024 that is 129/256 of the bytes of bf16. What arrives has 4 significant bits a number, and is exact
    in bf16.

    Experts that quantise rows once more, as the FP8 GEMMs do in tiles of 1 x 128, find the same values again; so they
    do in the weight gradients' tiles of 128 x 1, but for what is smaller than a 2^-13 of a tile's largest number.
    """

    def pack(self, x: Tensor) -> Tensor:
        codes, scale = quantize_tiles(x, _ROW)
        row = torch.cat([codes.view(torch.uint8), scale_to_byte(scale)], dim=1)
        return F.pad(row, (0, -row.shape[1] % 8))

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        codes = packed[:, :hidden].view(torch.float8_e4m3fn)
        scale = scale_from_byte(packed[:, hidden : hidden + -(-hidden // TILE)])
        return dequantize_tiles(codes, scale, _ROW, dtype)

    def of_gradients(self) -> Payload:
        return self
