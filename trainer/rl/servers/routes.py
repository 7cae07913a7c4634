"""The experts of an answer's tokens as servers send them: nested lists, or a key of a shared store.

Legend: P prompt · G answer · L layers · K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

STORE_S = 60.0
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
    address: of the cluster; the machine must have joined it. timeout_s: for one reading.
    """

    def __init__(
        self,
        address: str = "auto",
        *,
        name: str = "shared_store",
        namespace: str = "lmdeploy",
        timeout_s: float = STORE_S,
    ) -> None:
        self.address, self.name, self.namespace, self.timeout_s = address, name, namespace, timeout_s
        self._actor: Any = None

    def __call__(self, key: str) -> Any:
        """Raises ValueError where there is no such cluster, store or key, or none that answers, ImportError without
        Ray."""
        import ray

        try:
            if self._actor is None:
                if not ray.is_initialized():
                    ray.init(address=self.address, log_to_driver=False)
                self._actor = ray.get_actor(self.name, namespace=self.namespace)
            return ray.get(self._actor.get.remote(key), timeout=self.timeout_s)
        except ray.exceptions.RayTaskError as error:
            raise ValueError(f"the shared store has no routes under the key {key}: {error.cause!r}") from None
        except (ray.exceptions.RayError, ConnectionError) as error:  # the store or the cluster ended, or is late
            self._actor = None
            raise ValueError(f"the shared store cannot be read: {type(error).__name__}: {error}") from None
