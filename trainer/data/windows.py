"""The one record of what is read: windows of tokens, from a shard's bytes to a `Batch`. No torch here.

Shape legend: B windows · L = S + 1 tokens read for a window of S positions
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Windows:
    """B windows of L = S + 1 tokens; the last token of a window is the label of its last position."""

    tokens_BL: npt.NDArray[np.int64]
    starts_BL: npt.NDArray[np.bool_]  # true on the first token of a document
    prefix_BL: npt.NDArray[np.bool_]  # true on the tokens of a system prefix, which are read but not trained on
    faults: tuple[str, ...] = ()  # one line for each window that was unreadable and replaced by another

    @property
    def supervised_BS(self) -> npt.NDArray[np.bool_]:
        """True where the next token is a label: it continues a document and is not part of a prefix."""
        return ~(self.starts_BL | self.prefix_BL)[:, 1:]
