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


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    # A process of its own: Triton reads the switch when it is imported.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "tests.trainer.kernels.checks"]
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_computes_the_same_as_torch(check, failures):
    assert check not in failures, failures[check]
