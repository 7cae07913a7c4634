"""The one private name of `datasets` (4.x) in use: no public name reveals a selection of rows kept in memory."""

from typing import Any


def selects_rows(dataset: Any) -> bool:
    """Return True if a dataset has rows of its files in another order, or not all of them."""
    return dataset._indices is not None
