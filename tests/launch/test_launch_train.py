"""`octavo train` with real processes. Training itself is replaced, so that the ranks need no torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

# Python imports `sitecustomize` at start: every rank finds this training in place of the real one.
STAND_IN = """
import os, signal, sys, time, types

def train(cfg):
    got, rank = [], os.environ["RANK"]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: got.append(number))
    with open(f"rank-{rank}", "w") as file:
        file.write(f"{os.environ['WORLD_SIZE']} {cfg.optim.lr} {'torch' in sys.modules}")
    mode = cfg.run.name
    if mode == "fails" and rank == "1":
        return 7
    if mode == "dies" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    end = time.monotonic() + 60
    while mode != "done" and not got and time.monotonic() < end:
        time.sleep(0.02)
    if got:
        time.sleep(0.5)  # a save takes its time
        open(f"saved-{rank}", "w").close()
        return 128 + got[0]
    return 0

module = types.ModuleType("trainer.run")
module.train = train
sys.modules["trainer.run"] = module
"""


@pytest.fixture
def octavo(tmp_path):
    """Starts `octavo train` on two ranks in an empty directory, with the stand-in."""
    folder = tmp_path / "stand_in"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(STAND_IN)
    env = {**os.environ, "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{folder}"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        env.pop(name, None)
    started = []

    def start(mode):
        words = ["train", "--nproc-per-node", "2", "recipe=toy", "train.micro_batch=4", f"run.name={mode}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", *words],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def wait_for(*files):
    end = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < end, f"none of {files}"
        time.sleep(0.02)


def test_ranks_load_the_resolved_configuration_without_torch(octavo, tmp_path):
    process = octavo("done")
    _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    for rank in ("0", "1"):
        world_size, lr, torch = (tmp_path / f"rank-{rank}").read_text().split()
        assert (world_size, float(lr) > 0, torch) == ("2", True, "False")


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [
        ("fails", 7, "error: rank 1 failed first, with exit code 7\n"),
        ("dies", 137, "error: rank 1 was ended by SIGKILL\n"),
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed(octavo, mode, code, said):
    process = octavo(mode)
    _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (code, said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_every_rank_save(octavo, tmp_path, number):
    process = octavo("waits")
    wait_for(tmp_path / "rank-0", tmp_path / "rank-1")
    process.send_signal(number)
    _, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (128 + number, "")
    assert (tmp_path / "saved-0").exists()
    assert (tmp_path / "saved-1").exists()
