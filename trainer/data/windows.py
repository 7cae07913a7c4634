"""The one record of what is read: windows of tokens and media, from a shard's bytes to a `Batch`. No torch here.

Shape legend: B windows · L = S + 1 tokens read for a window of S positions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Prepared(NamedTuple):
    """An image or a signal as its tower takes it, in numpy.

    kind: image or signal. row, first: the window, and the place in it, of the first of its `tokens` placeholders.
    value: what the rule's `prepare` returned.
    """

    kind: str
    row: int
    first: int
    tokens: int
    value: Any


@dataclass(frozen=True)
class Windows:
    """B windows of L = S + 1 tokens; the last token of a window is the label of its last position."""

    tokens_BL: npt.NDArray[np.int64]
    starts_BL: npt.NDArray[np.bool_]  # true on the first token of a document
    # true on tokens that are read but not trained on: of a system prefix, of an image or signal with its markers, and
    # behind the last document of a window
    context_BL: npt.NDArray[np.bool_]
    # one line for each window that was unreadable and replaced by another, and for each document that was left out
    faults: tuple[str, ...] = ()
    media: tuple[Prepared, ...] = ()  # in the order of their placeholders: by row, then by place

    @property
    def supervised_BS(self) -> npt.NDArray[np.bool_]:
        """True where the next token is a label: it continues a document and is trained on."""
        return ~(self.starts_BL | self.context_BL)[:, 1:]


def joined(parts: Sequence[tuple[Sequence[int], Windows]], count: int) -> Windows:
    """One record of `count` windows from parts of them, each with the rows that its windows have in it."""
    first = parts[0][1]
    tokens, starts, context = (np.empty((count, *array.shape[1:]), array.dtype) for array in _arrays(first))
    found = Windows(tokens, starts, context)
    faults: list[str] = []
    media: list[Prepared] = []
    for rows, part in parts:
        for whole, some in zip(_arrays(found), _arrays(part), strict=True):
            whole[list(rows)] = some
        faults += part.faults
        media += [medium._replace(row=rows[medium.row]) for medium in part.media]
    media.sort(key=lambda medium: (medium.row, medium.first))
    return Windows(*_arrays(found), faults=tuple(faults), media=tuple(media))


def _arrays(windows: Windows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    return windows.tokens_BL, windows.starts_BL, windows.context_BL
