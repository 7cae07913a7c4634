"""The experts of an answer's tokens as servers send them: nested lists, or a key of a shared store.

Legend: P prompt · G answer · L layers · K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Routes = npt.NDArray[np.uint16]
Store = Callable[[str], Any]  # key -> array-like [P + G - 1, L, K]; each key once


def routes_from_lists(value: Any, rows: int) -> Routes:
    """[rows, L, K] of nested lists or an array of whole numbers. Raises ValueError for another shape, and for a
    number that is not an expert."""
    found = np.asarray(value)
    if found.dtype.kind not in "iu" or found.ndim != 3:
        raise ValueError(f"routes of the shape {found.shape} and type {found.dtype}, not [tokens, layers, experts]")
    if len(found) != rows:
        raise ValueError(f"routes of {len(found)} tokens, not of {rows} (prompt + answer - 1)")
    if found.size == 0 or found.min() < 0 or found.max() > np.iinfo(np.uint16).max:
        raise ValueError("routes that are empty, or with ids that do not fit into 16 bits")
    return np.ascontiguousarray(found, dtype=np.uint16)


class RayStore:
    """Takes routes out of the store in which LMDeploy's Ray workers leave them: an actor of the same Ray cluster.

    A key is good for one reading. Ray is imported with the first key: `pip install -e '.[ray]'`.
    address: of the cluster; the machine must have joined it.
    """

    def __init__(self, address: str = "auto", *, name: str = "shared_store", namespace: str = "lmdeploy") -> None:
        self.address, self.name, self.namespace = address, name, namespace
        self._actor: Any = None

    def __call__(self, key: str) -> Any:
        """Raises ValueError where there is no such store or key, ImportError without Ray."""
        import ray

        if self._actor is None:
            if not ray.is_initialized():
                ray.init(address=self.address, log_to_driver=False)
            self._actor = ray.get_actor(self.name, namespace=self.namespace)
        try:
            return ray.get(self._actor.get.remote(key))
        except ray.exceptions.RayTaskError as error:
            raise ValueError(f"the shared store has no routes under the key {key}: {error.cause!r}") from None
