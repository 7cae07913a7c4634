"""`trainer.model.ops.Ops` in Triton. Importing this module imports Triton."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from parallel.dispatch.payload import Fp8
from trainer.kernels import triton_payload, triton_router, triton_swiglu
from trainer.kernels.triton_rows import FusedOrder
from trainer.model.ops import Ops


def fuses(x: Tensor) -> bool:
    """True where Triton's kernels run on `x`; elsewhere plain torch does the work.

    Not in fp64, which they would narrow, nor inside torch.compile, which fuses plain torch itself. On a CPU only in
    Triton's interpreter, which its own switch TRITON_INTERPRET=1 turns on for tests.
    """
    if torch.compiler.is_compiling() or x.dtype == torch.float64:
        return False
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


class TritonOps(Ops):
    """Each operation in one kernel or a few, without atomics and without waiting for the device.

    Indices and rows are bitwise those of plain torch, and so are sums in fp32.
    """

    def fuses(self, x: Tensor) -> bool:
        return fuses(x)

    def route(
        self, logits: Tensor, groups: int, experts_per_token: int, gradient: str, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Ids also match among ties, infinities and NaN.

        A token is 4 E + 12 K bytes forward (2.1 KB with E = 512, K = 8) and 8 E + 12 K backward. Plain torch moves
        4 E + 40 K forward where each group gives one expert (argmax, offset, gather, softmax) and nearly 60 E where it
        sorts; backward about 36 E (division, softmax, product, scatter, division).
        """
        if not fuses(logits):
            return super().route(logits, groups, experts_per_token, gradient, temperature)
        return triton_router.route(logits, groups, experts_per_token, gradient, temperature)

    def pad_order(self, order: RowOrder, align: int) -> PaddedOrder:
        """Gathering moves 4 H bytes a row in bf16 (a read, a write), plain torch 10 H (a gather, a fill, a scatter).
        Both sums read 2 H bytes a row and write 2 H a token, plain torch 2 bytes a thread at a time, the kernel 16. The
        index build reads the ids three times and writes 24 bytes a slot and 16 a row in four launches; plain torch
        sorts (radix passes over 16 bytes a slot), then makes some twenty passes over integers of 8 bytes.
        """
        return FusedOrder(order, align) if fuses(order.ids) else super().pad_order(order, align)

    def fp8_payload(self) -> Fp8:
        return FusedFp8()

    # A row is 6 I bytes forward (9 KB) and 10 I backward (15 KB): everything is read once and written once.
    # Recomputing the result writes 2 I more.

    def _swiglu_forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return triton_swiglu.forward(hidden, weight) if fuses(hidden) else super()._swiglu_forward(hidden, weight)

    def _swiglu_backward(
        self, hidden: Tensor, weight: Tensor, dy: Tensor, *, recompute: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        if not fuses(hidden):
            return super()._swiglu_backward(hidden, weight, dy, recompute=recompute)
        return triton_swiglu.backward(hidden, weight, dy, recompute)


class FusedFp8(Fp8):
    """`Fp8` packed and unpacked in one pass each; bitwise the same.

    A number in bf16 is 3 bytes either way: read once, written once. Plain torch's passes over fp32, and the copies that
    put codes and scales side by side, move about 55 to pack it and 20 to unpack it.
    """

    def pack(self, x: Tensor) -> Tensor:
        return triton_payload.pack(x) if fuses(x) else super().pack(x)

    def unpack(self, packed: Tensor, hidden: int, dtype: torch.dtype) -> Tensor:
        if fuses(packed) and dtype != torch.float64:
            return triton_payload.unpack(packed, hidden, dtype)
        return super().unpack(packed, hidden, dtype)
