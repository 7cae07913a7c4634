"""Dispatchers bring tokens to experts and return the experts' results.

A dispatcher is an object that a mixture-of-experts block owns; the block's mathematics does not depend on which one it
is. `local` is for experts that are all on this rank; `all_gather` and `all_to_all` are for experts on several ranks.

Legend: T tokens on this rank · K experts per token · R = T*K rows · E experts · H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class _Sorted(NamedTuple):
    token_of_row: Tensor
    slot_of_row: Tensor
    row_of_slot: Tensor
    offsets: Tensor


class RowOrder:
    """The layout of T*K (token, slot) pairs as rows sorted by expert, computed on the device without a host sync.

    It is computed at the first use, because back ends that pad the rows with their own kernels need only `ids`.

    Attributes:
        ids [T, K], num_experts: the arguments.
        slot_of_row [R]: index of each row's slot in the flattened [T, K]. token_of_row [R]: its token.
        row_of_slot [T, K]: the inverse. offsets [E] int32: the end of each expert's rows.
        by_slot: True if a token's rows must be added in slot order even if another order is faster.
    Rows of one expert keep token order (the sort is stable).
    """

    by_slot = False

    def __init__(self, ids: Tensor, num_experts: int, *, by_slot: bool = False) -> None:
        self.ids, self.num_experts = ids, num_experts
        self.by_slot = by_slot and ids.shape[1] > 1
        self._built: _Sorted | None = None

    @property
    def _sorted(self) -> _Sorted:
        # Not a cached_property: in Python 3.11 it takes a lock, which torch.compile cannot trace.
        if self._built is None:
            ids = self.ids
            sorted_ids, slot_of_row = torch.sort(ids.flatten(), stable=True)
            token_of_row = slot_of_row.div(ids.shape[1], rounding_mode="floor")
            rows = torch.arange(ids.numel(), device=ids.device)
            row_of_slot = torch.empty_like(rows).scatter_(0, slot_of_row, rows).view_as(ids)
            experts = torch.arange(self.num_experts, device=ids.device)
            # searchsorted, not bincount: bincount syncs the host on CUDA.
            offsets = torch.searchsorted(sorted_ids, experts, right=True, out_int32=True)
            self._built = _Sorted(token_of_row, slot_of_row, row_of_slot, offsets)
        return self._built

    @property
    def token_of_row(self) -> Tensor:
        return self._sorted.token_of_row

    @property
    def slot_of_row(self) -> Tensor:
        return self._sorted.slot_of_row

    @property
    def row_of_slot(self) -> Tensor:
        return self._sorted.row_of_slot

    @property
    def offsets(self) -> Tensor:
        return self._sorted.offsets

    def ends(self) -> list[int]:
        """`offsets` on the host, which waits for the device."""
        return self.offsets.tolist()


def sum_slots(rows: Tensor, row_of_slot: Tensor) -> Tensor:
    """Sum each token's K rows in slot order: [R, H], [T, K] -> [T, H]. A gather: no atomics, bitwise reproducible."""
    return F.embedding_bag(row_of_slot, rows, mode="sum")


# (x [T, H], weights [T, K], order) -> [T, H]: the weighted sum over each token's rows. The experts own the gather and
# the sum, so that a back end can do both while the rows are in cache and need not keep an [R, H] tensor.
RunExperts = Callable[[Tensor, Tensor, RowOrder], Tensor]


class Dispatcher(Protocol):
    """The interface that a mixture-of-experts block calls; it holds no parameters."""

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor, num_experts: int, experts: RunExperts) -> Tensor:
        """Sum over each token's K experts of weight * expert(token).

        Args:
            x: [T, H]. ids: [T, K] int64, global expert ids. weights: [T, K], carries gradients.
            num_experts: E, over all ranks. experts: this rank's experts.
        Returns: [T, H] in the dtype of x.
        """
        ...
