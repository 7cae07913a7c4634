"""Jobs in processes that may crash or hang: each job has a deadline, and one that is lost does not end the others."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Literal

from trainer.storage.workers import Start, Worker, WorkerDied


@dataclass(frozen=True)
class Lost:
    """The result of a job whose process ended or was ended. how: such as "was killed by SIGSEGV"."""

    reason: Literal["crashed", "deadline"]
    how: str


def run_guarded(
    start: Start, jobs: Sequence[Any], count: int, seconds: float, *, inherit: Sequence[int] = ()
) -> Iterator[tuple[int, Any]]:
    """(place in `jobs`, result) of each job as they come, a `Lost` for one that crashed its process or took longer than
    `seconds`; the next job then gets a new process. Jobs are started in their order.

    count: processes; 0 does everything in this one, without a deadline. start, inherit: as for `Worker`.
    Raises what a task raises. If not all jobs are done at the end, all processes end too.
    """
    if count == 0:
        task = start()
        for place, job in enumerate(jobs):
            yield place, task(job, lambda report: None)
        return
    waiting = deque(range(len(jobs)))
    busy: dict[object, tuple[Worker, int, float]] = {}
    idle: list[Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                worker = idle.pop() if idle else Worker(start, inherit=inherit)
                place = waiting.popleft()
                worker.send(jobs[place])
                busy[worker.connection] = worker, place, time.monotonic() + seconds
            first = min(until for _, _, until in busy.values())
            ready = wait([worker.connection for worker, _, _ in busy.values()], max(first - time.monotonic(), 0.0))
            for connection in ready:
                worker, place, _ = busy[connection]
                try:
                    done, value = worker.receive()
                except WorkerDied as death:
                    del busy[connection]
                    yield place, Lost("crashed", death.how)
                    continue
                if done:
                    del busy[connection]
                    idle.append(worker)
                    yield place, value
            now = time.monotonic()
            for late, (worker, place, until) in [*busy.items()]:
                if until <= now:
                    del busy[late]
                    worker.kill()
                    yield place, Lost("deadline", f"took longer than {seconds:g} s")
    finally:
        for worker in [*idle, *(worker for worker, _, _ in busy.values())]:
            worker.kill()
