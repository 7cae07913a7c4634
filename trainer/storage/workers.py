"""Processes that do jobs for this one, which notices when one of them dies.

A job goes out and its reports and result come back as pickles over a socket. A worker is a fresh Python that imports
what its task needs and nothing else, or a fork, whose task may be any closure. It ignores Ctrl-C, which is this
process's to answer, and ends by itself once this process is gone.

`concurrent.futures` fails all jobs with one text when any process dies, names neither job nor signal, has no reports,
and its fresh processes import this program's main module, with torch. loky 3.7 names the signal but not the job, has
no reports, and is one more dependency.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any

PROTOCOL = 5  # of pickle: arrays as they are
# For libraries that start a thread for each core: there are as many workers as cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
SERVE = "from trainer.storage.workers import serve_fresh; serve_fresh({})"

Reporter = Callable[[Any], None]  # passes one report, any picklable value, to the process that gave the job
Task = Callable[[Any, Reporter], Any]  # does a job and returns its result
Start = Callable[[], Task]  # called once in each worker


class WorkerDied(Exception):
    """A worker ended in the middle of a job.

    code: its exit code, or the negative number of the signal. place: of the job, among those of `Workers.run`.
    """

    def __init__(self, pid: int, code: int, place: int = 0) -> None:
        super().__init__(pid, code, place)
        self.pid, self.code, self.place = pid, code, place

    @property
    def by_sigkill(self) -> bool:
        """True for SIGKILL, which is what a system does that is out of memory."""
        return self.code == -signal.SIGKILL

    @property
    def how(self) -> str:
        return f"was killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exited with code {self.code}"

    def __str__(self) -> str:
        return f"worker process {self.pid} {self.how}"


@dataclass(frozen=True)
class _Raised:
    error: Exception


class Worker:
    """One process. Jobs are done in the order in which they are sent.

    start: picklable, unless `fork`. inherit: descriptors that the process gets. fork: of this process; threads do not
    exist in a fork, torch's included. siblings: earlier forks, whose sockets the new one must not hold open.
    """

    def __init__(
        self, start: Start, *, inherit: Sequence[int] = (), fork: bool = False, siblings: Sequence[Worker] = ()
    ) -> None:
        self.connection, there = Pipe()
        self._process: multiprocessing.process.BaseProcess | subprocess.Popen[bytes]
        if fork:
            close = [*(worker.connection for worker in siblings), self.connection]
            context = multiprocessing.get_context("fork")
            self._process = context.Process(target=_serve_fork, args=(there, close, start), daemon=True)
            self._process.start()
        else:
            paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE.format(there.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(there.fileno(), *inherit),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **ONE_THREAD},
                start_new_session=True,  # signals to this process's group are this process's to answer
            )
        there.close()
        self.pid = self._process.pid
        if not fork:
            self.send(start)

    def send(self, job: Any) -> None:
        """Send a job. Where the process is gone, `receive` says so."""
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps(job, PROTOCOL))

    def receive(self) -> tuple[bool, Any]:
        """(True, result) or (False, report) of the oldest job without a result, as soon as there is one.

        Raises what the task raised; WorkerDied.
        """
        try:
            done, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError, pickle.UnpicklingError):
            raise WorkerDied(self.pid or 0, self.kill()) from None
        if isinstance(value, _Raised):
            raise value.error
        return done, value

    def kill(self) -> int:
        """End the process in the middle of what it does, and return its exit code. May be called again."""
        self._process.kill()
        if isinstance(self._process, subprocess.Popen):
            code = self._process.wait()
        else:
            self._process.join()
            code = self._process.exitcode or 0
        self.connection.close()
        return code


class Workers:
    """A context with `count` processes that share out jobs, started with the first jobs.

    count: 0 does everything in this process. start, inherit, fork: as for `Worker`.
    """

    def __init__(self, start: Start, count: int, *, inherit: Sequence[int] = (), fork: bool = False) -> None:
        self._start, self._count, self._inherit, self._fork = start, count, inherit, fork
        self._workers: list[Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End all processes in the middle of what they do."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def run(
        self, jobs: Sequence[Any], reported: Callable[[int, Any], None] = lambda place, report: None
    ) -> Iterator[tuple[int, Any]]:
        """(place in `jobs`, result) of each job, as they come. Jobs are started in their order.

        reported: called with the place of a job and what its task reports.
        Raises what a task raises; WorkerDied. If not all jobs are done at the end, all processes end too.
        """
        if self._count == 0:
            task = self._start()
            for place, job in enumerate(jobs):
                yield place, task(job, partial(reported, place))
            return
        while len(self._workers) < min(self._count, len(jobs)):
            self._workers.append(Worker(self._start, inherit=self._inherit, fork=self._fork, siblings=self._workers))
        waiting = deque(range(len(jobs)))
        busy: dict[object, tuple[Worker, int]] = {}
        try:
            for worker in self._workers[: len(jobs)]:
                busy[worker.connection] = worker, waiting.popleft()
                worker.send(jobs[busy[worker.connection][1]])
            while busy:
                for ready in wait([worker.connection for worker, _ in busy.values()]):
                    worker, place = busy[ready]
                    try:
                        done, value = worker.receive()
                    except WorkerDied as death:
                        death.place = place
                        raise
                    if not done:
                        reported(place, value)
                        continue
                    del busy[ready]
                    if waiting:
                        busy[ready] = worker, waiting.popleft()
                        worker.send(jobs[busy[ready][1]])
                    yield place, value
        finally:
            if busy:
                self.kill()


def _serve_fork(connection: Connection, close: Sequence[Connection], start: Start) -> None:
    for other in close:  # or this process would keep a worker from seeing that its parent is gone
        other.close()
    _serve(connection, start)


def serve_fresh(file: int) -> None:
    """Life of a fresh worker with the socket `file`."""
    connection = Connection(file)
    os.dup2(2, 1)  # this process's output may be read by a program
    _serve(connection, lambda: pickle.loads(connection.recv_bytes())())


def _serve(connection: Connection, start: Start) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(done: bool, value: Any) -> None:
        try:
            connection.send_bytes(pickle.dumps((done, value), PROTOCOL))
        except OSError:
            os._exit(1)  # the parent is gone: nothing this process does counts any more

    task: Task | Exception
    try:
        task = start()
    except EOFError:
        return
    except Exception as error:
        task = error
    while True:
        try:
            job = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):  # the parent is gone, or has left something unread
            return
        try:
            if isinstance(task, Exception):
                raise task
            result = task(job, partial(send, False))
        except Exception as error:
            error.add_note(f"in worker process {os.getpid()}:\n{traceback.format_exc()}")
            result = _Raised(error)
        send(True, result)
