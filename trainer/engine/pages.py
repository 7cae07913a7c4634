"""The pages of the cache: the free ones, and those that hold a prefix of tokens under one version of the weights.
No torch here.

A page has room for the keys and values of a fixed number of tokens, in all layers. A full page is published under a key
that hashes the weights' version, all tokens before the page and its own. Later requests with the same start hold it
too. A page that no request holds is kept until another needs the room; the one unused for longest goes first.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def root_key(version: object) -> bytes:
    """The key before the first page. version: of the weights; its repr distinguishes them."""
    return hashlib.blake2b(repr(version).encode(), digest_size=32).digest()


def next_key(before: bytes, tokens: Sequence[int], media: bytes = b"") -> bytes:
    """The key of a page with these tokens behind those that `before` stands for. media: what distinguishes the images
    and signals whose placeholders are among the tokens."""
    return hashlib.blake2b(before + array("q", tokens).tobytes() + media, digest_size=32).digest()


class Pages:
    """`count` pages, numbered from 0."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))  # a heap: low numbers first, so that pages in use are close together
        self._holders = [0] * count
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published, held by no request; unused for longest first

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def idle(self) -> int:
        """Pages that only keep a prefix."""
        return len(self._idle)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages of the longest run of published keys, from the first one on."""
        found: list[int] = []
        for key in keys:
            if (page := self._page_of.get(key)) is None:
                break
            found.append(page)
        return found

    def acquire(self, shared: Sequence[int], new: int) -> list[int] | None:
        """Hold the published pages `shared` and `new` others. Returns the others; None, with nothing changed, where
        there are too few."""
        if new > self.available - sum(page in self._idle for page in shared):
            return None
        for page in shared:
            self._idle.pop(page, None)
            self._holders[page] += 1
        taken = [self._take() for _ in range(new)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def publish(self, page: int, key: bytes) -> None:
        """A held page is full. Where two requests filled pages with the same tokens, the first one's is published."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def withdraw(self, key: bytes) -> None:
        """The page published under a key is no longer found."""
        page = self._page_of.pop(key)
        del self._key_of[page]
        if page in self._idle:
            del self._idle[page]
            heapq.heappush(self._free, page)

    def release(self, pages: Iterable[int]) -> None:
        """A request no longer holds these pages, which are in the order of their tokens."""
        for page in reversed([*pages]):  # so that the end of a prefix goes before its start
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._key_of:
                self._idle[page] = None
            else:
                heapq.heappush(self._free, page)

    def _take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._key_of.pop(page)]
        return page
