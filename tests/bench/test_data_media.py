"""The memory of a process that reads images and signals does not grow with their number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.data_media import MEDIA, QUICK_MEDIA, make, read

LIMIT = 500  # MiB


@pytest.mark.parametrize(
    "count",
    [QUICK_MEDIA, pytest.param(MEDIA, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_media_in_random_order_need_little_memory(tmp_path: Path, count: int) -> None:
    found = read(make(tmp_path, count))
    assert found["media"] == count
    assert found["peak"] < LIMIT
    assert not found["torch"]
