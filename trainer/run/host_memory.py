"""Settings of the allocator for runs on a CPU."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
LARGEST = 2**31 - 1  # mallopt takes an int


def prepare_host_memory() -> None:
    """Keep freed memory for the next step, and ask for large pages; call it before the first large tensor exists.

    A step allocates the same large tensors as the one before. By default glibc's malloc returns them to the kernel in
    between, which then maps and zeroes every page again; with these settings it keeps them. torch's own switch asks for
    2 MB pages, which make the scattered row accesses of the experts' gather cheaper. The peak resident size hardly
    changes. Without glibc (macOS, musl) this has no effect.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Some releases of glibc take no more than 32 MiB for the first; trimming is left alone unless one was taken, since
    # setting either stops glibc from adapting the other.
    if mallopt is not None and (mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, 32 << 20)):
        mallopt(M_TRIM_THRESHOLD, LARGEST)
