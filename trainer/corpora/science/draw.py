"""Choices that depend only on their names and their record, not on the order in which records are read."""

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

from trainer.data.hashing import text_key

T = TypeVar("T")


class Draw:
    """Choices for one text: each is a hash of the seed, the record and the name of the choice."""

    def __init__(self, *key: str) -> None:
        self._key = key

    def part(self, name: str) -> "Draw":
        """Choices of a part of the text, independent of those of its other parts."""
        return Draw(*self._key, name)

    def below(self, n: int, name: str) -> int:
        return text_key(*self._key, name) % n

    def one_of(self, options: Sequence[T], name: str) -> T:
        return options[self.below(len(options), name)]

    def shuffled(self, items: Sequence[T], name: str) -> list[T]:
        # One hash for all keys: a hash for each would take most of the time of a ranking.
        stream = hashlib.shake_256("\0".join((*self._key, name)).encode()).digest(8 * len(items))
        keys = struct.unpack(f">{len(items)}Q", stream)
        return [items[place] for place in sorted(range(len(items)), key=lambda place: (keys[place], place))]
