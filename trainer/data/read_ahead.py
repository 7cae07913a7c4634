"""Processes that read samples before they are asked for.

A rank asks for samples at a constant stride, so what it asks for next is known. What a process reads is a pure function
of the sample numbers: reading ahead changes when, never what, and a batch that was lost is read again. A worker imports
no torch.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from trainer.data.errors import DataError
from trainer.storage.workers import Task, Worker, WorkerDied

DEPTH = 2  # batches that a worker is asked for at one time
MAX_REPLACED = 3  # a worker's place; then something kills them, and waiting longer would hide it
FORGIVEN_AFTER = 10_000  # answers in a row, the deaths in a worker's place are forgotten: runs last for weeks


T = TypeVar("T")  # what a reader returns, such as `Windows`
T_co = TypeVar("T_co", covariant=True)


class Reader(Protocol[T_co]):
    def read(self, first_sample: int, count: int) -> T_co: ...


class ReadAhead(Generic[T]):
    """Gives what `reader.read` gives, mostly before it is asked for."""

    def __init__(self, reader: Reader[T], open_reader: Callable[[], Reader[T]], workers: int) -> None:
        """open_reader: picklable; opens the same reader in another process. workers: 0 reads in this process."""
        self._reader, self._open_reader, self._workers = reader, open_reader, workers
        self._processes: list[_Process] = []
        self._pending: deque[tuple[_Process, tuple[int, int]]] = deque()  # in the order of the samples
        self._last: tuple[int, int] | None = None
        self.close = weakref.finalize(self, _end, self._processes)  # called at the latest when this object is freed

    def read(self, first_sample: int, count: int) -> T:
        asked, last = (first_sample, count), self._last
        self._last = asked
        if self._workers == 0:
            return self._reader.read(*asked)
        while self._pending and self._pending[0][1] != asked:
            self._receive()  # not asked for after all, as after a change of the stride
        found = self._receive() if self._pending else self._reader.read(*asked)
        if last is not None and last[1] == count and last[0] < first_sample:
            self._ask(stride=first_sample - last[0])
        return found

    def _ask(self, stride: int) -> None:
        if not self._processes:
            self._processes += [_Process(self._open_reader) for _ in range(self._workers)]
        first, count = self._pending[-1][1] if self._pending else self._last or (0, 1)
        while len(self._pending) < DEPTH * self._workers:
            first += stride
            # Around the ring, so that none has to answer twice before another one answers.
            worker = min(self._processes, key=lambda process: process.asked)
            worker.ask((first, count))
            self._pending.append((worker, (first, count)))

    def _receive(self) -> T:
        process, asked = self._pending.popleft()
        try:
            found: T = process.answer()
            return found
        except WorkerDied as death:
            # Its other answers are lost with it: they are asked for again, and this one is read here.
            others = [request for other, request in self._pending if other is process]
            process.restart(death)
            for request in others:
                process.ask(request)
            return self._reader.read(*asked)


def _end(processes: list[_Process]) -> None:
    for process in processes:
        process.worker.kill()  # it holds nothing that could be lost


class _Process:
    """A worker that reads, or the one in its place."""

    def __init__(self, open_reader: Callable[[], Reader[Any]]) -> None:
        self._start = partial(start_reading, open_reader)
        self._replaced = self._answered = 0  # deaths that count, answers since the last one
        self.asked = 0  # so far
        self.worker = Worker(self._start)

    def ask(self, request: tuple[int, int]) -> None:
        self.asked += 1
        self.worker.send(request)

    def answer(self) -> Any:
        """Raises WorkerDied, or DataError where the process could not read."""
        found = self.worker.receive()[1]
        self._answered += 1
        if self._answered == FORGIVEN_AFTER:
            self._replaced = 0
        return found

    def restart(self, death: WorkerDied) -> None:
        """Start another worker. Raises DataError where too many died."""
        self._replaced, self._answered = self._replaced + 1, 0
        if self._replaced > MAX_REPLACED:
            raise DataError(
                f"a read-ahead worker (pid {death.pid}) {death.how}, as did {self._replaced - 1} before it; it may "
                "have run out of memory. data.workers=0 reads without workers",
                where="data.workers",
                value=self._replaced,
                allowed=(0,),
            )
        self.worker = Worker(self._start)


def start_reading(open_reader: Callable[[], Reader[Any]]) -> Task:
    """Open a reader in a worker, whose jobs are pairs of a first sample and a count."""
    reader = open_reader()
    return lambda request, report: reader.read(*request)
