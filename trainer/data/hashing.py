"""Counter-based hashing: every random choice in the data is a pure function of integers.

No random number library is used, so no installed version of one can change which tokens a run sees.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]


def mix64(*counters: int | npt.NDArray[np.integer]) -> U64:
    """Hash integers (scalars or arrays that broadcast) to uniform uint64, of the broadcast shape.

    Each counter is added to the state and the state passed through the finaliser of SplitMix64 (Steele, Lea and
    Flood, "Fast splittable pseudorandom number generators", 2014), so that (1, 2) and (2, 1) differ.
    Negative counters count modulo 2**64.
    """
    if all(isinstance(counter, int) for counter in counters):
        return np.array([_mix_numbers(counters)], np.uint64)
    state = np.zeros(1, np.uint64)
    for counter in counters:
        value = np.array([counter % 2**64], np.uint64) if isinstance(counter, int) else counter.astype(np.uint64)
        state = (state + value) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def _mix_numbers(counters: Iterable[Any]) -> int:
    """The same for numbers alone, for which numpy takes ten times as long."""
    state, last = 0, 2**64 - 1
    for counter in counters:
        state = ((state + counter) * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & last
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & last
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & last
        state ^= state >> 31
    return state


def text_key(*parts: str) -> int:
    """A 64-bit key of some strings, the same on every machine."""
    return bytes_key("\0".join(parts).encode())


def bytes_key(data: bytes) -> int:
    """A 64-bit key of some bytes, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
