"""Our Triton kernels on a GPU: each runs there and never waits for the host."""

from __future__ import annotations

import pytest
import torch

from tests.bench.gpu import kernels
from tests.bench.gpu.clock import Clock


@pytest.mark.gpu
def test_the_kernels_on_a_gpu():
    for row in kernels.measure(256, 1, Clock(torch.device("cuda"))):
        assert row.skipped is None
        assert row.triton_ms is not None
        assert row.host_syncs[1] == 0
