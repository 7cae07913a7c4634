"""The contract between the module of the experts and the back ends that compute them.

Legend: T tokens · K experts per token · E experts · I expert width · H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from parallel.dispatch.base import RowOrder

Backend = Callable[[Tensor, Tensor, Tensor, Tensor, RowOrder], Tensor]
"""(x [T, H], weights [T, K], w13 [E, 2, I, H], w2 [E, H, I], order) -> [T, H], differentiable in all tensors.

The experts' weights come as they are stored; the back end casts them to the dtype of x, or quantises them. It also
gathers the rows and sums those of each token. The routing weight is applied before the down projection, so that the
experts' outputs need not be kept for its gradient; the gathered rows are not kept either."""


@runtime_checkable
class QuantizedBackend(Protocol):
    """A back end of one layer that computes with quantised weights."""

    def __call__(self, x: Tensor, weights: Tensor, w13: Tensor, w2: Tensor, order: RowOrder) -> Tensor: ...

    def hold_weights(self, hold: bool) -> None:
        """hold: True promises that weights do not change until the next call: they are quantised at their first use
        and kept. With False they are quantised at each use, and nothing is kept."""
