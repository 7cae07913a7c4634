"""Engines as actors of a local Ray cluster; `make test-peers` sets Ray's environment up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.rl.servers.directories import directory_of
from tests.trainer.weights.peers.environments import CHECKOUT, PEERS, require

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # on busy cores Ray takes minutes to start


def test_two_workers_answer_load_pause_and_die_as_the_protocol_says(tmp_path):
    require("ray")
    first, second = (directory_of(tmp_path / str(seed), seed)[0] for seed in range(2))
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{PEERS / 'ray'}:{CHECKOUT}",
    }  # fmt: skip
    script = Path(__file__).parent / "inside" / "ray_cluster.py"
    done = subprocess.run(
        [sys.executable, str(script), str(first), str(second)],
        capture_output=True, text=True, env=environment, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert (found["before"], found["after"], found["versions"], found["bytes"]) == (True, True, [2], True)
    for finish, tokens, rows in found["aborted"]:
        assert (finish, rows) == ("abort", tokens + 1)
        assert 0 < tokens < 800
    assert found["refused"][1] == "Ray worker 0 of 2"
    assert found["not whole"][2] == "resume"
    text, where, request, finished = found["late"]
    assert (where, request, finished) == ("Ray worker 0 of 2", 0, [1])
    assert (found["again"], found["counts"]) == (True, {"died": 1, "asked_again": 2})
    text, where, request, _ = found["dead"]
    assert (where, request) == ("2 Ray workers", 0)
    assert len(text.splitlines()) == 1
    assert found["replaced"]
    assert (found["routes"], found["once"]) == (True, True)
