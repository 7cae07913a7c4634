"""How a CPU run's process treats memory that torch gives back."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed for the next step in place of giving it back to the kernel.

    A step frees and allocates the same large tensors as the one before; returned to the kernel, every page of them is
    mapped and zeroed again. The peak of the resident size does not change. True where glibc took the setting; elsewhere
    (another libc, another system) nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, LARGEST))
