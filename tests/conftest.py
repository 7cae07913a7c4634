"""Set-up of every test: one thread per process, no look at the network, GPU tests where there is a GPU."""

import os
from pathlib import Path

# Before torch is imported, and for the processes that tests start: the machine's few cores are shared by them all.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def reference() -> Path:
    """Directory of reference data next to the checkout: tiny published models, their inputs, outputs and gradients."""
    path = CHECKOUT.parent / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}")
    return path
