"""Kept crops and their copies.

Crops are judged from the one with most pixels to the one with fewest, by id where these are equal. Each is compared
with kept crops whose hash is near, the nearest first, and is a copy of the first that is the same figure; one without
any is kept. So every copy was itself found to be the same as the crop that is kept for it: chains of small changes do
not run together, and the order of the input has no effect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.corpora.captions.dedup.search import Hashes, near_pairs

LOOKS = 64  # kept crops that a crop is compared with at most, so that a hash that many figures share costs no more
Places = NDArray[np.int64]
Same = Callable[[int, int], bool]


@dataclass(frozen=True)
class Near:
    """Neighbours in one kind of hash. value: [N] the number of each crop's hash among the different ones. start, near:
    the numbers of the hashes within the distance of hash v are near[start[v]:start[v + 1]]."""

    hashes: Hashes
    value: Places
    start: Places
    near: Places

    def of(self, crop: int) -> Iterator[int]:
        """The crop's own hash and those near to it."""
        value = int(self.value[crop])
        yield value
        yield from self.near[self.start[value] : self.start[value + 1]].tolist()

    @property
    def has_company(self) -> NDArray[np.bool_]:
        """[N]: some other crop has an equal or near hash."""
        alone = (np.bincount(self.value, minlength=len(self.hashes)) == 1) & (np.diff(self.start) == 0)
        return ~alone[self.value]


@dataclass
class Found:
    """of: [N] the crop that is kept for each, which may be itself. pairs: of different near hashes. compared: crops
    laid over each other. cut: crops that had more than LOOKS kept crops near."""

    of: Places
    pairs: int = 0
    compared: int = 0
    cut: int = 0


def find_near(values: Hashes, distance: int, scratch: Path | None = None) -> Near:
    """values: [N], equal ones are searched once. distance: in bits."""
    hashes, value = np.unique(values, return_inverse=True)
    pairs = list(near_pairs(hashes, distance, scratch=scratch))
    first = np.searchsorted(hashes, np.concatenate([pair[0] for pair in pairs])) if pairs else np.zeros(0, np.int64)
    second = np.searchsorted(hashes, np.concatenate([pair[1] for pair in pairs])) if pairs else np.zeros(0, np.int64)
    source, target = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.lexsort((target, source))
    start = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=len(hashes)))])
    return Near(hashes, value.astype(np.int64), start.astype(np.int64), target[order].astype(np.int64))


def by_rank(pixels: Places, ids: NDArray[np.bytes_]) -> Places:
    """The crops from the one with most pixels to the one with fewest, then by id."""
    return np.lexsort((ids, -pixels))


def equal_ones(keys: NDArray[np.bytes_], ranked: Places) -> Places:
    """[N]: the first crop in `ranked` that has the same key."""
    of = np.empty(len(keys), np.int64)
    _, first, which = np.unique(keys[ranked], return_index=True, return_inverse=True)
    of[ranked] = ranked[first[which]]
    return of


def near_copies(ranked: Places, spaces: Sequence[Near], same: Same) -> Found:
    """Decide which crops are copies. spaces: of hashes; near in one of them is enough to be compared. same: compares
    two crops."""
    found = Found(np.arange(len(ranked)), pairs=sum(len(space.near) // 2 for space in spaces))
    company = np.zeros(len(ranked), np.bool_)
    for space in spaces:
        company |= space.has_company
    kept: list[defaultdict[int, list[int]]] = [defaultdict(list) for _ in spaces]
    for crop in ranked[company[ranked]].tolist():
        looked: dict[int, None] = {}  # in the order of rank within each hash
        for space, there in zip(spaces, kept, strict=True):
            for value in space.of(crop):
                looked.update(dict.fromkeys(there.get(value, ())))
        for other in _nearest(crop, looked, spaces, found):
            found.compared += 1
            if same(crop, other):
                found.of[crop] = other
                break
        else:
            for space, there in zip(spaces, kept, strict=True):
                there[int(space.value[crop])].append(crop)
    return found


def _nearest(crop: int, looked: dict[int, None], spaces: Sequence[Near], found: Found) -> list[int]:
    """At most LOOKS of the kept crops, by the sum of their distances, then by their place in the input's hashes."""
    if len(looked) < 2:
        return list(looked)
    others = np.fromiter(looked, np.int64, len(looked))
    far = np.zeros(len(others), np.int64)
    for space in spaces:
        hashes = space.hashes[space.value[others]]
        far += np.bitwise_count(hashes ^ space.hashes[space.value[crop]])
    found.cut += len(others) > LOOKS
    return others[np.argsort(far, kind="stable")[:LOOKS]].tolist()
