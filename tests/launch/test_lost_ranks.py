"""Ranks that die or hang under real launchers: everything ends, with a line that names the rank."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.printed import error_line

CHECKOUT = Path(__file__).resolve().parents[2]

# Python imports `sitecustomize` at start: every rank leaves its pid behind, and rank 1 meets its fault in step 20.
FAULT = """
import os, signal, sys, time

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "trainer.run.process":
            sys.meta_path.remove(self)
            open(f"pid-{os.getpid()}", "w").close()
            if os.environ["RANK"] == "1":
                from trainer.data.text import TextStream
                genuine, turns = TextStream.batch, iter(range(20))
                def batch(self, *arguments):
                    if next(turns, None) is None:
                        time.sleep(3)  # some heartbeats, else the others know no place of this rank
                        open("fault", "w").close()
                        os.kill(os.getpid(), getattr(signal, os.environ["FAULT"]))
                    return genuine(self, *arguments)
                TextStream.batch = batch

if "RANK" in os.environ:
    sys.meta_path.insert(0, Finder())
"""
WORDS = [
    "recipe=toy", "data=synthetic", "data.seq_len=16", "model.vocab_size=64", "model.hidden_size=32",
    "model.num_layers=1", "model.num_heads=2", "model.num_kv_heads=1", "model.head_dim=16", "model.expert_width=16",
    "train.micro_batch=1", "train.global_batch=2", "train.steps=1000", "train.eval_every=0", "run.dir=run",
]  # fmt: skip


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Starts commands with a fault; gives their exit codes and stderr, and the seconds since the fault."""
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}{os.pathsep}{tmp_path / 'stand_in'}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # torchrun leaves an empty directory for logs, a killed one more
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(fault: str, *commands: list[str]) -> tuple[list[int], str, float]:
        monkeypatch.setenv("FAULT", fault)
        with open("stderr", "w") as err:
            processes = [
                subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL, stderr=err)
                for words in commands
            ]
        try:
            codes = [process.wait(timeout=160) for process in processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"not ended: {Path('stderr').read_text()}")
        finally:
            for process in processes:
                process.kill()
        err = Path("stderr").read_text()
        assert Path("fault").exists(), err
        return codes, err, time.time() - Path("fault").stat().st_mtime

    yield run
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # none is left, and none waits for its parent
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_octavo_train_ends_with_a_rank_that_is_stopped(launch):
    """SIGTERM does not reach such a rank, and the launcher gives its ranks a quarter of an hour to end on SIGTERM."""
    command = ["launch.cli", "train", "--nproc-per-node", "2", *WORDS, "parallel.timeout_s=10"]
    (code,), err, seconds = launch("SIGSTOP", command)
    assert code == 128 + signal.SIGKILL
    silent, killed = err.splitlines()
    error_line(silent, "rank 1 ", "parallel.timeout_s=10")
    assert re.search(r"\bhost \S+, pid \d+\b.*\b\d+ s\b.*\bstep \d+: ", silent), err
    error_line(killed, "rank 1", "SIGKILL")
    assert seconds < 35


@pytest.mark.slow
def test_a_rank_that_dies_on_another_machine(launch):
    """Two launchers, as on two machines: the rank under the other one is known by its heartbeat alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(port)]
    rest = ["-m", "trainer", *WORDS]
    codes, err, seconds = launch("SIGKILL", *([*command, "--node-rank", node, *rest] for node in "01"))
    assert codes == [1, 1], err
    assert err.count("\nerror:") + err.startswith("error:") == 1, err
    assert re.search(r"^error: rank 1\b.*\bhost \S+, pid \d+\b.*\b\d+ s\b", err, re.M)
    assert seconds < 40
