"""Processes that take jobs, one after the other.

Each is `python -m trainer.corpora.tokenize.worker`. It is no fork, as this process may hold threads, and no child of
`multiprocessing`, which would import whatever program this process runs, such as training with its torch. It holds the
work directory's lock too, so that a new start after a kill -9 does not write beside what is left of the old one.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import trainer
from trainer.corpora.tokenize.jobs import Job, run_job
from trainer.data.errors import DataError

WORKER = [sys.executable, "-m", "trainer.corpora.tokenize.worker"]


class Pool:
    """So many processes, started when there is work for them and kept for more; with 0, this process does it all."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def run(self, work: Path, jobs: Sequence[Job], told: Callable[[int, int, int], None]) -> Iterator[tuple[int, Any]]:
        """(place in `jobs`, result), as they come. told(place, bytes, tokens) hears of progress.

        Raises DataError: a job's own, or that of a process which died.
        """
        if self._workers == 0:
            for place, job in enumerate(jobs):
                yield place, run_job(work, job, lambda *so_far, place=place: told(place, *so_far))  # type: ignore[misc]
            return
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(jobs)):
            waiting.put(place)
        answers: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        busy = min(self._workers, len(jobs))
        self._processes += (_start() for _ in range(busy - len(self._processes)))
        for process in self._processes[:busy]:
            threading.Thread(target=_feed, args=(process, work, jobs, waiting, answers), daemon=True).start()
        left = len(jobs)
        try:
            while left:
                place, answer = answers.get()
                if "told" in answer:
                    told(place, *answer["told"])
                elif "error" in answer:
                    raise DataError(answer["error"])
                else:
                    left -= 1
                    yield place, answer["result"]
        finally:
            if left:  # some are in the middle of a job that nobody wants
                self.__exit__()


def _start() -> subprocess.Popen[str]:
    source = str(Path(trainer.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        WORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        close_fds=False,  # the lock
        # One core each: there are as many processes as cores.
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
    )


def _feed(process: "subprocess.Popen[str]", work: Path, jobs: Sequence[Job], waiting: Any, answers: Any) -> None:
    """Give a process one job after the other and pass its answers on."""
    assert process.stdin is not None
    assert process.stdout is not None
    while True:
        try:
            place = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            process.stdin.write(json.dumps([str(work), jobs[place]]) + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it died; the end of its output says so
        for line in process.stdout:
            answer = json.loads(line)
            answers.put((place, answer))
            if "told" not in answer:
                break
        else:
            code = process.wait()
            how = f"signal {-code}: was it out of memory? Use fewer --workers" if code < 0 else f"exit code {code}"
            answers.put((place, {"error": f"a worker process ended by {how}; start again to go on from here"}))
            return
