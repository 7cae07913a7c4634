"""Cores and memory of a container, and when a machine is too busy for the threads of a run."""

import os

import pytest

from trainer.metrics import host

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, BOUND),
        ({"cpu.max": "max 100000"}, BOUND),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "100000000 100000"}, BOUND),  # more than there are
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, BOUND),
        ({"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "100000"}, 0.25),
        ({"cpu.max": "damaged"}, BOUND),
    ],
)
def test_the_cores_of_a_container(tmp_path, files, expected):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert host.cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 8192), ({"memory.max": "max"}, 8192), ({"memory.max": "4096"}, 4096),
     ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 8192)],
)  # fmt: skip
def test_the_memory_of_a_container(tmp_path, limit, expected):
    (tmp_path / "memory").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:       8 kB\nMemFree:        1 kB\n")
    for name, text in (limit or {}).items():
        (tmp_path / name).write_text(text)
    assert host.memory(tmp_path, tmp_path / "meminfo") == expected


def test_memory_that_is_unknown(tmp_path):
    assert host.memory(tmp_path, tmp_path / "meminfo") is None


@pytest.mark.parametrize(
    ("threads", "ranks", "load", "available", "remedy"),
    [
        (2, 1, 0.5, 2, None),
        (2, 1, 2.5, 2, None),  # its own start alone makes some load
        (2, 1, 8.0, 2, "OMP_NUM_THREADS=1"),
        (8, 1, 0.0, 2, "OMP_NUM_THREADS=2"),  # a container's cores, of the 8 that torch sees
        (4, 4, 0.0, 4, "OMP_NUM_THREADS=1"),
        (1, 1, 8.0, 2, "slow"),  # nothing to set
        (1, 8, 0.0, 2, None),
        (1, 1, 0.0, 0.5, None),
    ],
)
def test_a_machine_that_others_use_too(threads, ranks, load, available, remedy):
    line = host.crowded(threads, ranks, load, available)
    assert (line is None) == (remedy is None)
    assert remedy is None or remedy in line
