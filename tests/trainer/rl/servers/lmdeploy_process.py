"""LMDeploy's own HTTP server in a process of its own, over a tiny export."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trainer.data.small_mixture import make_mixture
from tests.trainer.tiny_run import tiny_config
from tests.trainer.weights.peers.environments import CHECKOUT, PEERS
from trainer.run.process import train
from trainer.weights.export import export

SCRIPT = Path(__file__).parent / "inside" / "lmdeploy_server.py"
MODEL = {"vocab_size": 320, "router_groups": 1, "positions": "rope", "max_position": 1000, "init_std": 0.3}


def make_export(folder: Path, seed: int = 0) -> Path:
    """A Qwen3-MoE directory with a tokenizer, of random weights."""
    (folder / "mixture").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        data = make_mixture(folder / "mixture", patch)
    cfg = tiny_config(folder / "run", model=MODEL, steps=1, lr=1e-6)
    cfg.data, cfg.run.seed = data, seed
    assert train(cfg) == 0
    export(folder / "run", folder / "exported", dtype="bf16")
    return folder / "exported"


@dataclass
class Servers:
    """urls: by the names of `inside/lmdeploy_server.py`."""

    process: subprocess.Popen[str]
    urls: dict[str, str]


def environment(home: Path) -> dict[str, str]:
    """Variables of a process that imports LMDeploy and this checkout."""
    return {
        "PATH": "/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{PEERS / 'lmdeploy'}:{CHECKOUT}",
    }  # fmt: skip


@contextmanager
def lmdeploy_servers(directory: Path, log: Path) -> Iterator[Servers]:
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(directory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment(log.parent),
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()[-4000:]
        yield Servers(process, {name: f"http://127.0.0.1:{port}" for name, port in json.loads(line).items()})
    finally:
        process.kill()
        process.wait()
