"""The Triton kernels on CPU tensors, in Triton's interpreter: what they compute, without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.kernels.checks import CHECKS

CHECKOUT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which has wheels for Linux alone"
)


# Each is another dtype or another gradient through a kernel that a quick check runs.
SLOW = {
    "swiglu, fp32", "swiglu, bf16", "gathers and sums, fp32", "experts, fp32", "router, conventional gradient",
    "payload, fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def failures(request: pytest.FixtureRequest) -> dict[str, str]:
    # A process of its own: Triton reads the switch when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    chosen = [
        item.callspec.params["check"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "tests.trainer.kernels.checks", *chosen]
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CHECKS])
def test_a_kernel_computes_the_same_as_torch(check, failures):
    assert check not in failures, failures[check]
