"""Which rows an expert gets, padded: `parallel.dispatch.padding`'s, or its twin in Triton.

Legend: T tokens · K experts per token · S = T*K slots · P padded rows · H hidden size.
"""

from __future__ import annotations

from parallel.dispatch.base import RowOrder
from parallel.dispatch.padding import PaddedOrder
from trainer.kernels import on_triton


def pad_order(order: RowOrder, align: int) -> PaddedOrder:
    """`PaddedOrder(order, align)`, whose index build, gathers and sum are Triton kernels where these are in use.

    Both give bitwise the same indices, rows and, in fp32, sums; without atomics and without waiting for the device.

    Bytes, bf16: gathering moves 4 H a row (a read, a write), the twin 10 H (a gather, a fill, a scatter). Both sums
    read 2 H a row and write 2 H a token, the twin 2 bytes a thread at a time, the kernel 16. The index build reads the
    ids three times and writes 24 bytes a slot and 16 a row in four launches; the twin sorts (radix passes over 16 bytes
    a slot) and then makes some twenty passes over S or P integers of 8 bytes.
    """
    if on_triton(order.ids):
        from trainer.kernels.triton_rows import FusedOrder

        return FusedOrder(order, align)
    return PaddedOrder(order, align)
