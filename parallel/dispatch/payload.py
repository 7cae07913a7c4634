"""Formats of hidden states between ranks: unchanged, cast to another dtype, or FP8 codes with their scales.

Legend: T tokens · N rows received · H hidden size · C columns of a message.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.fp8 import TILE, dequantize_tiles, quantize_tiles, scale_from_byte, scale_to_byte

_ROW = (1, TILE)


class Payload(Protocol):
    """A format of hidden states. Gradients pass straight through the loss of packing."""

    def pack(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, C] in a dtype that collectives support; a row's bytes are a multiple of 8 where columns of 4 or
        8 bytes a number are joined to it."""
        ...

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        """Rows [N, C] that `pack` made on any rank -> [N, hidden] in `dtype`."""
        ...

    def for_gradients(self) -> Payload:
        """The format of the gradients of results, which one all-gather sends to the experts in backward."""
        ...


class Cast:
    """Hidden states in `dtype` (None: their own), gradients in their own."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def pack(self, x: Tensor) -> Tensor:
        return x.to(self.dtype or x.dtype)

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        return packed.to(dtype)

    def for_gradients(self) -> Payload:
        return Cast()


class Fp8:
    """Hidden states and the gradients of results in e4m3, with a power of two for each 128 numbers of a token.

    A row holds H codes and one byte for each scale, its exponent, padded with zeros to a multiple of 8 bytes. For H a
    multiple of 1024 that is 129/256 of the bytes of bf16. Unpacked numbers have 4 significant bits and are exact in
    bf16.

    Experts that quantise the rows again, as the FP8 GEMMs do in tiles of 1 x 128, get the same values; so do the weight
    gradients' tiles of 128 x 1, except for numbers below 2^-13 of a tile's largest.
    """

    def pack(self, x: Tensor) -> Tensor:
        codes, scale = quantize_tiles(x, _ROW)
        row = torch.cat([codes.view(torch.uint8), scale_to_byte(scale)], dim=1)
        return F.pad(row, (0, -row.shape[1] % 8))

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        codes = packed[:, :hidden].view(torch.float8_e4m3fn)
        scale = scale_from_byte(packed[:, hidden : hidden + -(-hidden // TILE)])
        return dequantize_tiles(codes, scale, _ROW, dtype)

    def for_gradients(self) -> Payload:
        return self


class Wire:
    """One message's format: hidden states as `payload` packs them, and other tensors beside them, bit for bit.

    `pack` and `join` remember the widths and dtypes (not the tensors) that `unpack` and `split` need for what the other
    ranks sent in the same format.
    """

    def __init__(self, payload: Payload | None = None) -> None:
        self.payload = payload or Cast()

    def pack(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, C]."""
        self.hidden, self.dtype = x.shape[1], x.dtype
        return self.payload.pack(x)

    def unpack(self, packed: Tensor) -> Tensor:
        """[N, C] -> [N, H] in the dtype that was packed."""
        return self.payload.unpack(packed, self.hidden, self.dtype)

    def join(self, *parts: Tensor) -> Tensor:
        """[T, c] tensors of any dtypes, side by side -> [T, C] in the dtype of the first, so that one collective
        carries all. Each row of a part must fill whole elements of that dtype."""
        self.columns = [(part.shape[1], part.dtype) for part in parts]
        return torch.cat([part.contiguous().view(parts[0].dtype) for part in parts], dim=1)

    def split(self, message: Tensor) -> list[Tensor]:
        """[N, C] -> views of the parts that were joined, [N, c] each."""
        sizes = [count * dtype.itemsize // message.dtype.itemsize for count, dtype in self.columns]
        views = zip(message.split(sizes, dim=1), self.columns, strict=True)
        return [part.view(dtype) for part, (_, dtype) in views]
