"""Choices that depend on what is chosen for whom and on nothing else, such as the order in which records are read."""

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

from trainer.data.hashing import text_key

T = TypeVar("T")


class Draw:
    """Choices for one text: each a counter-based hash of the seed, the record and the name of the choice."""

    def __init__(self, *key: str) -> None:
        self._key = key

    def part(self, name: str) -> "Draw":
        """Choices of a part of the text, independent of those of its other parts."""
        return Draw(*self._key, name)

    def below(self, n: int, what: str) -> int:
        return text_key(*self._key, what) % n

    def one_of(self, options: Sequence[T], what: str) -> T:
        return options[self.below(len(options), what)]

    def shuffled(self, items: Sequence[T], what: str) -> list[T]:
        # One hash for all keys: a hash for each would be most of the time that a ranking takes.
        stream = hashlib.shake_256("\0".join((*self._key, what)).encode()).digest(8 * len(items))
        keys = struct.unpack(f">{len(items)}Q", stream)
        return [items[place] for place in sorted(range(len(items)), key=lambda place: (keys[place], place))]
