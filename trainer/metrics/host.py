"""Cores and memory that this machine, or the container it runs in, gives to a process. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
BUSY = 1.5  # processes that want to run for each core: from here on a machine counts as shared


def cores(cgroup: Path = CGROUP) -> float:
    """Cores that this process may use: those it is bound to, or the share of them that its container has."""
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        bound = os.cpu_count() or 1
    for version_2, quota, period in (
        (True, "cpu.max", ""),
        (False, "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        words = _words(cgroup / quota) + ([] if version_2 else _words(cgroup / period))
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):  # "max" and -1: no limit
            return min(bound, int(words[0]) / int(words[1]))
    return bound


def memory(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory of this machine, or of its container; None if unknown. Swap does not count."""
    sizes = []
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemTotal:"):
                sizes.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        words = _words(cgroup / limit)
        if words and words[0].isdecimal():
            sizes.append(int(words[0]))
    return min(sizes, default=None)


def crowded(threads: int, ranks: int, load: float, available: float) -> str | None:
    """A line for the log if the threads of this run have to wait for cores; None otherwise.

    threads: of each of the `ranks` on this machine. load: the load average before training. available: cores.
    """
    share = max(1, int(available / ranks))
    text = f"{load:.1f} processes want the {available:g} core(s) of this machine (load average)"
    if threads > share and threads * ranks > available:
        text = f"{ranks} rank(s) x {threads} threads on {available:g} core(s)"
    elif load < BUSY * available:
        return None
    elif threads == 1:
        return f"{text}: steps will be slow"
    else:
        share = 1
    return f"{text}: threads that wait for each other then lose most of their time; try OMP_NUM_THREADS={share}"


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
