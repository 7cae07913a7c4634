"""Every job is done once, in processes that end with this one, and a death is reported with its job and signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.storage.jobs import cannot_start, start
from trainer.storage.lock import FileLock, LockedError
from trainer.storage.workers import Worker, WorkerDied, Workers, _serve_fork

KINDS = [pytest.param({}, id="fresh"), pytest.param({"fork": True}, id="fork")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_all_jobs_are_done_whatever_the_number_of_processes(kind: dict[str, Any], count: int) -> None:
    reports: list[tuple[int, int]] = []
    with Workers(start, count, **kind) as workers:
        for jobs in ([], [5], [*range(12)]):
            reports.clear()
            found = dict(workers.run(jobs, lambda place, report: reports.append((place, report))))
            assert found == {place: 2 * job for place, job in enumerate(jobs)}
            assert sorted(reports) == [(place, n) for place in range(len(jobs)) for n in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_processes_are_kept_for_more_jobs_and_end_with_the_context(kind: dict[str, Any]) -> None:
    with Workers(start, 2, **kind) as workers:
        first = {pid for _, pid in workers.run(["pid"] * 30)}
        second = {pid for _, pid in workers.run(["pid"] * 30)}
        assert first | second == {worker.pid for worker in workers._workers}
    assert os.getpid() not in first
    for pid in first | second:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("job", "code", "how"), [("die", -signal.SIGKILL, "was killed by SIGKILL"), ("exit", 7, "exited with code 7")]
)
def test_a_death_names_its_job_and_how(kind: dict[str, Any], job: str, code: int, how: str) -> None:
    with Workers(start, 2, **kind) as workers:
        with pytest.raises(WorkerDied) as death:
            list(workers.run([1, 2, job]))
        assert (death.value.place, death.value.code, death.value.how) == (2, code, how)
        assert death.value.by_sigkill == (job == "die")
        assert dict(workers.run([1, 2])) == {0: 2, 1: 4}  # by new processes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 2])
def test_what_a_task_raises_is_raised_here(kind: dict[str, Any], count: int) -> None:
    with Workers(start, count, **kind) as workers, pytest.raises(FileNotFoundError) as error:
        list(workers.run([1, "fail", "sleep"]))
    assert error.value.filename == "a/file"
    if count:
        assert "jobs.py" in error.value.__notes__[0]
    with Workers(cannot_start, count, **kind) as workers, pytest.raises(FileNotFoundError) as error:
        list(workers.run([1, 2, 3]))
    assert error.value.filename == "a/source"


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_that_are_not_wanted_any_more_end(kind: dict[str, Any]) -> None:
    with Workers(start, 2, **kind) as workers:
        results = workers.run([1, "sleep"])
        next(results)
        results.close()
        assert not workers._workers


def test_a_fresh_process_imports_only_what_it_needs_and_prints_to_the_errors(capfd: pytest.CaptureFixture[str]) -> None:
    import torch  # noqa: F401  # this process has it

    worker = Worker(start)
    worker.send("modules")
    assert not {"torch", "numpy", "pytest"} & set(worker.receive()[1])
    worker.send("print")
    assert worker.receive() == (True, "printed")
    worker.kill()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "not an answer\n")


def test_ctrl_c_does_not_reach_a_worker() -> None:
    for fork in (False, True):
        worker = Worker(start, fork=fork)
        worker.send(1)
        assert [worker.receive() for _ in range(3)][-1] == (True, 2)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        worker.send(2)
        assert [worker.receive() for _ in range(3)][-1] == (True, 4)
        worker.kill()


LEADER = """import sys
from tests.trainer.storage.jobs import start
from pathlib import Path
from trainer.storage.lock import FileLock
from trainer.storage.workers import Workers
lock = FileLock(Path(sys.argv[1]))
with Workers(start, 2, inherit=[lock.file], fork=sys.argv[2] == "fork") as workers:
    job = sys.argv[3]
    for _ in workers.run(["pid", job, job], lambda place, report: print("working", flush=True)):
        print("idle", flush=True)
"""


@pytest.mark.parametrize("kind", ["fresh", "fork"])
@pytest.mark.parametrize("what", ["report forever", "pid"])
def test_workers_of_a_killed_process_hold_its_lock_and_end(tmp_path: Path, kind: str, what: str) -> None:
    words = [sys.executable, "-c", LEADER, str(tmp_path / "lock"), kind, what]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        for _ in range(2):
            leader.stdout.readline()
        if what != "pid":
            with pytest.raises(LockedError):
                FileLock(tmp_path / "lock")
        leader.kill()
    FileLock(tmp_path / "lock", wait=20).close()  # all of them have ended


@pytest.mark.parametrize("unread", [False, True])
def test_an_idle_worker_whose_parent_is_gone_ends_in_silence(capfd: pytest.CaptureFixture[str], unread: bool) -> None:
    here, there = Pipe()
    if unread:  # then the socket is reset, not at its end
        there.send("a report")
    process = multiprocessing.get_context("fork").Process(target=_serve_fork, args=(there, [here], start))
    process.start()
    here.close()
    process.join(30)
    assert (process.exitcode, capfd.readouterr().err) == (0, "")
