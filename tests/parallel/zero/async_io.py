"""DeepSpeed's async_io, compiled before the tests that put state into files; the first time takes minutes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parallel.zero import nvme
from parallel.zero.library import load_async_io
from tests.distributed.pool import on_ranks


def load() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    load_async_io()


def need_async_io(directory: Path) -> None:
    """Skip the test where async_io cannot be compiled, or `directory` cannot have its files."""
    if fault := nvme.unavailable(directory):
        pytest.skip(fault.text)
    on_ranks(1, load, timeout_s=1800)
