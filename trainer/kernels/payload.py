"""FP8 on the wire, packed and unpacked in one pass each."""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.dispatch.payload import Fp8
from trainer.kernels import on_triton


class FusedFp8(Fp8):
    """`parallel.dispatch.payload.Fp8`, by Triton kernels where these are in use; bitwise the same.

    A number in bf16 is 3 bytes either way: read once, written once. The twin's passes over fp32 and the copies that put
    codes and scales side by side move about 55 to pack it and 20 to unpack it.
    """

    def pack(self, x: Tensor) -> Tensor:
        if on_triton(x):
            from trainer.kernels import triton_payload

            return triton_payload.pack(x)
        return super().pack(x)

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        if on_triton(packed) and dtype != torch.float64:
            from trainer.kernels import triton_payload

            return triton_payload.unpack(packed, hidden, dtype)
        return super().unpack(packed, hidden, dtype)
