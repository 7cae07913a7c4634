"""`octavo train` with real processes. Training itself is replaced, so that the ranks need no torch."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.cli import main
from launch.commands.train import AGAIN, MEMORY, RENDEZVOUS, _missing_machines, prepare
from launch.ranks import exit_code
from tests.printed import error_line
from trainer.config.command_line import Parser
from trainer.config.errors import ConfigError
from trainer.run.directory import hold

CHECKOUT = Path(__file__).resolve().parents[3]

# Python imports `sitecustomize` at start: every rank finds this training in place of the real one.
STAND_IN = """
import os, signal, sys, time, types

def train(cfg, run):
    got, rank = [], os.environ["RANK"]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: got.append(number))
    with open(f"rank-{rank}", "w") as file:
        file.write(f"{os.environ['WORLD_SIZE']} {cfg.optim.lr} {'torch' in sys.modules} {run and run.status}")
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

module = types.ModuleType("trainer.run.process")
module.train = train
sys.modules["trainer.run.process"] = module
"""


WORDS = ["train", "--nproc-per-node", "2", "recipe=toy", "train.micro_batch=4"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """An empty directory in which `-m trainer` finds the stand-in."""
    folder = tmp_path / "stand_in"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}{os.pathsep}{folder}")
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def octavo(stand_in, monkeypatch, capfd):
    """Runs `octavo train` on two ranks, in this process: its import of torch is the larger part of a start."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "60")  # put back afterwards: the launcher sets it
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = [(number, signal.getsignal(number)) for number in numbers]  # torchrun's agent sets its own
    yield lambda mode: (main([*WORDS, f"run.name={mode}"]), capfd.readouterr().err)
    for number, handler in handlers:
        signal.signal(number, handler)


def wait_for(*files):
    end = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < end, f"none of {files}"
        time.sleep(0.02)


def test_ranks_load_the_resolved_configuration_without_torch(octavo, stand_in):
    assert octavo("done") == (0, "")
    for rank in ("0", "1"):
        world_size, lr, torch, status = (stand_in / f"rank-{rank}").read_text().split()
        assert (world_size, float(lr) > 0, torch) == ("2", True, "False")
        assert status == {"0": "new", "1": "None"}[rank]  # the launcher's choice of the run directory


def test_the_exit_code_is_that_of_the_rank_that_failed(octavo):
    code, printed = octavo("fails")
    assert code == 7
    error_line(printed, "rank 1", 7)


def test_a_rank_that_was_killed_is_named(octavo):
    code, printed = octavo("dies")
    assert code == 137
    assert "same command" in error_line(printed, "rank 1", "SIGKILL")  # what to do next


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_lets_every_rank_save(stand_in, number):
    """In a process of its own, which alone gets the signal, as from a terminal: the ranks lead their own sessions."""
    command = [sys.executable, "-m", "launch.cli", *WORDS, "run.name=waits"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(stand_in / "rank-0", stand_in / "rank-1")
        process.send_signal(number)
        _, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert (process.returncode, err) == (128 + number, "")
    assert (stand_in / "saved-0").exists()
    assert (stand_in / "saved-1").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux notifies a process that its parent died")
def test_every_rank_saves_when_the_launcher_is_killed(stand_in):
    command = [sys.executable, "-m", "launch.cli", *WORDS, "run.name=waits"]
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(stand_in)})  # it cannot clean up after itself
    try:
        wait_for(stand_in / "rank-0", stand_in / "rank-1")
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + 20
    while not all((stand_in / f"saved-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < end, "the ranks do not notice that their launcher is gone"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("codes", "expected", "data"),
    [
        ([143, 143], 143, None),
        ([-15, 143, -15], 143, None),  # one rank was asked to stop; the agent ended others that had saved
        ([130, -15], 130, None),
        ([-15, 1, -15], 1, ["rank 1"]),
        ([143, -9, 143], 137, ["rank 1", "SIGKILL", "--dry-run", "same command"]),
        ([-11], 139, ["rank 0", "SIGSEGV", "same command"]),
    ],
)
def test_what_the_ranks_codes_come_to(codes, expected, data, capsys):
    def failure(code: int) -> SimpleNamespace:
        return SimpleNamespace(exitcode=code, timestamp=1, signal_name=lambda: signal.Signals(-code).name)

    failed = SimpleNamespace(failures={rank: failure(code) for rank, code in enumerate(codes)})
    assert exit_code(failed, AGAIN, MEMORY) == expected
    printed = capsys.readouterr().err
    assert bool(printed) == bool(data)
    assert not data or error_line(printed, *data)


@pytest.mark.parametrize(("console", "lines"), [("auto", 1), ("off", 0)])
def test_on_a_terminal_a_start_says_so_before_torch_is_loaded(stand_in, monkeypatch, console, lines):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("launch.commands.train.run_ranks", lambda *_: 0)
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    assert main(["train", "recipe=toy", "run.dir=here", f"logging.console={console}"]) == 0
    assert len(screen.getvalue().splitlines()) == lines
    assert ("here" in screen.getvalue()) == bool(lines)


TWO_MACHINES = ["train", "--nnodes", "2", "recipe=toy", "train.global_batch=16", "--rdzv-conf", "timeout=2"]


@pytest.mark.parametrize(
    ("options", "waits_for"),
    [
        ([], "--node-rank 1 (2, ...) --master-addr ADDRESS-OF-THIS-MACHINE --master-port {port}"),
        (["--node-rank", "1"], "machine 0 must run the same command with --node-rank 0, at 127.0.0.1:{port}"),
    ],
)
def test_a_launcher_says_which_machines_it_waits_for(octavo, monkeypatch, capfd, options, waits_for):
    monkeypatch.setattr("launch.commands.train.WAIT_S", 0.1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    conf = [*TWO_MACHINES[:-1], f"{TWO_MACHINES[-1]},read_timeout=2"]
    assert main([*conf, "--master-port", port, *options]) == 1
    err = capfd.readouterr().err
    assert "waiting for 1 other machine(s)" in err
    assert waits_for.format(port=port) in err
    assert err.count("error:") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"--rdzv-endpoint": "a:1"}, "--rdzv-endpoint a:1"),
        ({"--master-addr": "m", "--master-port": "9"}, "--node-rank 1 (2, ...) --master-addr m --master-port 9"),
        ({"--rdzv-backend": "c10d"}, "--rdzv-endpoint HOST:PORT"),
    ],
)
def test_what_a_launcher_waits_for_with_other_rendezvous(given, says):
    assert says in _missing_machines(3, {**dict.fromkeys(RENDEZVOUS), **given})


def test_ranks_that_start_print_no_word_of_waiting(octavo, monkeypatch):
    monkeypatch.setattr("launch.commands.train.WAIT_S", 0.0)
    monkeypatch.setattr("launch.commands.train._missing_machines", lambda *_: 1 / 0)  # asked for one machine
    assert octavo("done") == (0, "")


def test_a_directory_in_use_is_refused_before_torch_is_loaded(stand_in, monkeypatch):
    monkeypatch.setattr("launch.commands.train.run_ranks", lambda *_: 1 / 0)
    with hold(Path("busy")), pytest.raises(ConfigError) as caught:
        prepare(Parser("octavo train", ""), ["recipe=toy", "run.dir=busy"])
    assert (caught.value.where, caught.value.value) == ("run.dir", "busy")
    prepare(Parser("octavo train", ""), ["recipe=toy", "run.dir=busy"])


@pytest.mark.parametrize("key", ["model.num_layers", "model.num_experts", "train.global_batch"])
def test_a_model_beyond_memory_is_refused_before_torch_is_loaded(stand_in, monkeypatch, key):
    monkeypatch.setattr("launch.commands.train.GPU_DEVICES", ())
    monkeypatch.setattr("launch.commands.train.run_ranks", lambda *_: 1 / 0)
    with pytest.raises(ConfigError) as caught:
        prepare(Parser("octavo train", ""), ["recipe=toy", "data=synthetic", f"{key}=800000000000"])
    assert caught.value.where == "model"
    assert not (stand_in / "runs").exists()
