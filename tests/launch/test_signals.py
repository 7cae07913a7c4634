"""Ctrl-C and SIGTERM in the first seconds of `octavo train` and of a rank, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parallel.interrupts import INTERRUPTED

CHECKOUT = Path(__file__).resolve().parents[2]
WORDS = ["recipe=toy", "data=synthetic", "train.sample_tokens=0"]
# A process that sends itself a signal at the first import whose name is given, as a user would from outside. FOLDER in
# the environment: not before the launcher has made its temporary directory.
AT_IMPORT = """
import builtins, glob, os, runpy, sys
genuine, moment, number = builtins.__import__, sys.argv[1], int(sys.argv[2])
def watched(name, *rest, **named):
    if name == moment and ("FOLDER" not in os.environ or glob.glob(os.environ["TMPDIR"] + "/octavo-*")):
        builtins.__import__ = genuine
        os.kill(os.getpid(), number)
    return genuine(name, *rest, **named)
builtins.__import__ = watched
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
# the module whose import is interrupted
OURS = ["trainer.config.keys", "hydra.core.override_parser.overrides_parser"]
TORCH = ["torch._C", "torch.distributed"]
COMMANDS = {"octavo train": ["launch.cli", "train"], "python -m trainer": ["trainer"]}


def hear_signals():
    """In a child: a background job of a shell, and its children, start with SIGINT ignored, and those of nohup with
    SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run(tmp_path, *words, moment, number, **more):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path), **more}
    command = [sys.executable, "-c", AT_IMPORT, moment, str(int(number)), *words]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
                          preexec_fn=hear_signals)  # fmt: skip


@pytest.mark.parametrize("moment", [*OURS, *(pytest.param(name, marks=pytest.mark.slow) for name in TORCH)])
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_a_command_starts_is_one_line(command, moment, tmp_path):
    done = run(tmp_path, *COMMANDS[command], *WORDS, moment=moment, number=signal.SIGINT)
    assert (done.returncode, done.stderr) == (130, f"{INTERRUPTED}\n")
    assert list(tmp_path.iterdir()) == []


def test_of_several_ranks_one_prints_that_it_was_interrupted(tmp_path):
    done = run(tmp_path, "trainer", *WORDS, moment=OURS[0], number=signal.SIGINT, RANK="1")
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    ("words", "moment"),
    [
        (["data", "index", "vision_contrastive_toy"], "trainer.corpora.pairs.tars"),
        (["data", "stats", "toy"], "numpy"),
        (["science", "out.jsonl", "--source", "thermo"], "trainer.corpora.science.tables"),
    ],
)
def test_ctrl_c_in_the_work_of_a_command_is_one_line(words, moment, tmp_path):
    done = run(tmp_path, "launch.cli", *words, moment=moment, number=signal.SIGINT)
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.startswith("interrupted")


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), [SIGNALS[0], *(pytest.param(*one, marks=pytest.mark.slow)
                                                            for one in SIGNALS[1:])])  # fmt: skip
def test_a_launcher_that_is_stopped_early_leaves_no_temporary_directory(tmp_path, number, code):
    """The temporary directory exists, and torchrun's agent handles no signal yet."""
    done = run(tmp_path, "launch.cli", "train", *WORDS, moment="torch.distributed.elastic.multiprocessing",
               number=number, FOLDER="1")  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (code, int(number == signal.SIGINT))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_any_moment_of_the_start(tmp_path, number):
    """From outside, a little later each time, through the start and into the first steps."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "launch.cli", "train", *WORDS, "train.steps=100000"]
    codes = set()
    for tenths in range(1, 100, 7):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals)  # fmt: skip
        time.sleep(tenths / 10)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        # Python's own start, with the environment's packages, comes before any handler of ours and before any frame of
        # ours in a traceback.
        frames = [line for line in said.splitlines() if str(CHECKOUT) in line and "site-packages" not in line]
        assert not frames, said
        codes.add(process.returncode)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith("octavo-")] == []
    assert codes <= {128 + number, -number}
