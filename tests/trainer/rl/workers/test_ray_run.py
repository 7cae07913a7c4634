"""Runs with environments and engines on a Ray cluster of two nodes equal those without, bit for bit, also where one of
these dies; `make test-peers` sets Ray's environment up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.rl.kills.places import assert_equal_weights
from tests.trainer.rl.toy import run_toy
from tests.trainer.tiny_run import losses
from tests.trainer.weights.peers.environments import CHECKOUT, PEERS, require

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # on busy cores Ray takes minutes to start


def test_runs_on_a_cluster_equal_those_without_when_workers_and_nodes_die(tmp_path):
    require("ray")
    for recipe in ("rl_toy", "rl_tools_toy"):
        run_toy(tmp_path / recipe / "run", recipe=recipe)
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",
        "PYTHONPATH": f"{PEERS / 'ray'}:{CHECKOUT}",
    }  # fmt: skip
    script = Path(__file__).parent / "inside" / "ray_run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True, text=True, env=environment, timeout=1100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["nodes"] == ["head", "other"]
    assert found["environment"][0] == 1
    assert found["environment"][1] >= 1
    assert found["engine"] == [1, 8]
    assert found["node"] >= 1
    for name, recipe in (
        ("killed environment", "rl_tools_toy"), ("killed engine", "rl_toy"), ("dead node", "rl_tools_toy")
    ):  # fmt: skip
        assert losses(tmp_path / name / "run") == losses(tmp_path / recipe / "run")
        assert_equal_weights(tmp_path / name / "run", tmp_path / recipe / "run")
