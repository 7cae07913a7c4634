"""Ranks that die, hang or never come take the run down, and one line names them."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import parallel.world
from parallel.health.watch import Watch
from parallel.world import World, start_world
from tests.distributed.doomed import Ended, play_all, run_ranks
from tests.printed import error_line

pytestmark = pytest.mark.timeout(600)  # all cases are played before the first test
TIMEOUT_S = 6.0
ABSENT_S = 12.0  # how long the others wait for a rank that never comes
# What a busy machine may add: to find out, to leave in good order, to be scheduled at all.
SLACK_S = 15.0
FAULTS = ["killed", "asleep", "stuck in C", "raises", "busy", "absent"]


def run(folder: Path, fault: str) -> int:
    """A training loop in small, on 3 ranks. Rank 1 meets `fault` in the data of step 3."""
    world = World()
    try:
        if fault == "absent":
            parallel.world.JOIN_S = ABSENT_S
            (folder / "ready").touch()
        world = start_world("cpu", TIMEOUT_S)
        for step in range(1, 6):
            world.watch.at(f"step {step}: data")
            if step == 3 and world.rank == 0:
                (folder / "ready").touch()
            if step == 3 and world.rank == 1:
                time.sleep(3 * world.watch._beat_s)  # else the others know no place of a rank that dies
                meet(fault, world.watch)
            world.sum_counts(steps=1)
            world.watch.at(f"step {step}: forward")
            dist.all_reduce(torch.ones(2))
        (folder / f"done-{world.rank}").touch()
        return 0
    except Exception as error:
        if world.watch.report_failure(error):
            print(f"error: {error}", flush=True)
        return 1
    finally:
        world.close()


def meet(fault: str, watch: Watch) -> None:
    match fault:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "asleep":
            time.sleep(3600)
        case "stuck in C":
            ctypes.PyDLL(None).sleep(3600)  # it keeps the interpreter's lock, so no thread of Python runs
        case "raises":
            raise ValueError("sample 7")
        case "slow":
            time.sleep(0.6 * TIMEOUT_S)
        case "busy":  # the others wait for longer than the timeout
            for _ in range(6):
                time.sleep(0.25 * TIMEOUT_S)
                watch.tick()


def play(base: Path, fault: str) -> Ended:
    folder = base / fault.replace(" ", "-")
    absent = [1] if fault == "absent" else []
    ending = run_ranks(folder, 3, run, folder, fault, absent=absent, limit_s=ABSENT_S + SLACK_S)
    assert fault not in ("slow", "busy") or all((folder / f"done-{rank}").exists() for rank in range(3)), ending
    return ending


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, Ended]:
    base = tmp_path_factory.mktemp("watch")
    return play_all(FAULTS, lambda fault: play(base, fault))


def test_a_rank_that_is_killed(ended):
    ending = ended["killed"]
    assert ending.codes == [1, -signal.SIGKILL, 1], ending
    assert len(ending.errors) == 1, ending
    error_line(ending.errors[0], "rank 1 ", "step 3: data")
    assert ending.seconds < SLACK_S


def test_a_rank_that_does_not_move(ended):
    ending = ended["asleep"]
    assert ending.codes == [1, 1, 1], ending
    assert len(ending.errors) == 1, ending
    line = error_line(ending.errors[0], "rank 1 ", "step 3: data", "parallel.timeout_s=6")
    assert re.search(r"\bhost \S+, pid \d+\b", line)
    assert re.search(r"\b[6-9] s\b", line)
    assert TIMEOUT_S < ending.seconds < TIMEOUT_S + SLACK_S


def test_a_rank_whose_threads_do_not_run_is_killed_by_its_neighbours(ended):
    check_that_its_neighbours_kill_it(ended["stuck in C"])


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_killed_by_its_neighbours(tmp_path):
    check_that_its_neighbours_kill_it(play(tmp_path, "stopped"))


def check_that_its_neighbours_kill_it(ending: Ended) -> None:
    assert ending.codes == [1, -signal.SIGKILL, 1], ending
    assert len(ending.errors) == 1, ending
    assert re.search(r"\b\d s\b", error_line(ending.errors[0], "rank 1 ", "step 3: data"))
    assert TIMEOUT_S < ending.seconds < TIMEOUT_S + SLACK_S


def test_only_the_rank_that_raises_reports_it(ended):
    ending = ended["raises"]
    assert ending.codes == [1, 1, 1], ending
    error_line(ending.output, "sample 7")


def test_a_rank_that_is_busy_but_moves_is_waited_for(ended):
    ending = ended["busy"]
    assert (ending.codes, ending.output) == ([0, 0, 0], "")
    assert ending.seconds > 1.4 * TIMEOUT_S


@pytest.mark.slow
def test_a_rank_that_is_slow_is_waited_for(tmp_path):
    ending = play(tmp_path, "slow")
    assert (ending.codes, ending.output) == ([0, 0, 0], "")


def test_a_rank_that_never_comes(ended):
    ending = ended["absent"]
    assert ending.codes == [1, 1], ending
    assert len(ending.errors) == 1, ending
    error_line(ending.errors[0], "2 of 3", "12 s", "rank 1")
    assert ending.seconds < ABSENT_S + SLACK_S


def test_alone_nothing_is_watched():
    watch = Watch()
    watch.join()
    watch.at("step 1: data")
    watch.tick()
    assert watch.report_failure(ValueError("x"))
    assert not watch.failed
    watch.close()
