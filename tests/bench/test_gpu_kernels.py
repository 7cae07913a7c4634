"""The GPU bench of our Triton kernels: on a CPU their twins, and, in Triton's place, these again."""

from __future__ import annotations

import pytest
import torch

from tests.bench.gpu import kernels
from tests.bench.gpu.clock import Clock
from tests.trainer.kernels.examples import EXAMPLES

CLOCK = Clock(torch.device("cpu"))


def test_every_kernel_has_its_twins_figures_where_there_is_no_triton():
    rows = list(kernels.measure(1, 1, CLOCK))
    assert [row.arm for row in rows] == [example.name for example in EXAMPLES]
    for row in rows:
        assert row.torch_ms > 0
        assert row.triton_ms is None
        assert row.skipped == "Triton's kernels need a CUDA device"


@pytest.mark.gpu
def test_the_kernels_on_a_gpu():
    for row in kernels.measure(256, 1, Clock(torch.device("cuda"))):
        assert row.skipped is None
        assert row.triton_ms is not None
        assert row.host_syncs[1] == 0
