"""Processes that read windows before they are asked for.

A rank asks for samples at a constant stride, so what it asks for next is known. What a process reads is a pure function
of the sample numbers: reading ahead changes when, never what, and a batch that was lost is read again. A worker is a
Python without torch that talks over its standard input and output; it ends when the trainer does, however that ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.errors import DataError

DEPTH = 2  # batches that a worker is asked for at one time
MAX_REPLACED = 3  # a worker's place; then something kills them, and waiting longer would hide it
FORGIVEN_AFTER = 10_000  # answers in a row, the deaths in a worker's place are forgotten: runs last for weeks
SERVE = "from trainer.data.read_ahead import serve; serve()"


@dataclass(frozen=True)
class Windows:
    """What was read for n samples; B = n rows of L = S + 1 tokens."""

    tokens_BL: npt.NDArray[np.int64]
    starts_BL: npt.NDArray[np.bool_]  # true where a document begins
    prefix_BL: npt.NDArray[np.bool_]  # true on tokens of a system prefix
    faults: tuple[str, ...] = ()  # what was unreadable and replaced, a line each


class Reader(Protocol):
    def read(self, first_sample: int, count: int) -> Windows: ...


class ReadAhead:
    """Gives what `reader.read` gives, mostly before it is asked for."""

    def __init__(self, reader: Reader, open_reader: Callable[[], Reader], workers: int) -> None:
        """open_reader: picklable; opens the same reader in another process. workers: 0 reads in this process."""
        self._reader, self._open_reader, self._workers = reader, open_reader, workers
        self._processes: list[_Worker] = []
        self._pending: deque[tuple[_Worker, tuple[int, int]]] = deque()  # in the order of the samples
        self._last: tuple[int, int] | None = None
        self.close = weakref.finalize(self, _end, self._processes)  # called at the latest when nobody has this any more

    def read(self, first_sample: int, count: int) -> Windows:
        asked, last = (first_sample, count), self._last
        self._last = asked
        if self._workers == 0:
            return self._reader.read(*asked)
        while self._pending and self._pending[0][1] != asked:
            self._receive()  # not asked for after all, as after a change of the stride
        windows = self._receive() if self._pending else self._reader.read(*asked)
        if last is not None and last[1] == count and last[0] < first_sample:
            self._ask(stride=first_sample - last[0])
        return windows

    def _ask(self, stride: int) -> None:
        if not self._processes:
            self._processes += [_Worker(self._open_reader) for _ in range(self._workers)]
        first, count = self._pending[-1][1] if self._pending else self._last or (0, 1)
        while len(self._pending) < DEPTH * self._workers:
            first += stride
            # Around the ring, so that none has to answer twice before another one answers.
            worker = min(self._processes, key=lambda process: process.asked)
            worker.ask((first, count))
            self._pending.append((worker, (first, count)))

    def _receive(self) -> Windows:
        worker, asked = self._pending.popleft()
        try:
            return worker.answer()
        except (EOFError, pickle.UnpicklingError, OSError):
            # Its other answers are lost with it: they are asked for again, and this one is read here.
            others = [request for process, request in self._pending if process is worker]
            worker.replace()
            for request in others:
                worker.ask(request)
            return self._reader.read(*asked)


def _end(processes: list[_Worker]) -> None:
    for process in processes:
        process.end()


class _Worker:
    """One process, or the one in its place."""

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._opening = pickle.dumps(open_reader)
        self._replaced = self._answered = 0  # deaths that count, answers since the last one
        self.asked = 0  # so far
        self._start()

    def _start(self) -> None:
        # Its own session: a Ctrl-C is for the trainer to hear, which ends its step first.
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,
        )
        self._send(self._opening)

    def ask(self, request: tuple[int, int]) -> None:
        self.asked += 1
        self._send(pickle.dumps(request))

    def answer(self) -> Windows:
        """Raises EOFError, UnpicklingError or OSError where the process is gone, DataError where it could not read."""
        assert self._process.stdout is not None
        answer: Any = pickle.load(self._process.stdout)
        self._answered += 1
        if self._answered == FORGIVEN_AFTER:
            self._replaced = 0
        if isinstance(answer, str):
            raise DataError(answer)
        return answer

    def replace(self) -> None:
        self._replaced, self._answered = self._replaced + 1, 0
        pid = self._process.pid
        self._process.kill()
        code = self._process.wait()
        self._close_pipes()
        if self._replaced > MAX_REPLACED:
            raise DataError(
                f"a process that reads ahead (pid {pid}) has ended with code {code}, the {self._replaced}th in its "
                "place: is there too little memory? data.workers=0 reads without them"
            )
        self._start()

    def end(self) -> None:
        self._process.kill()  # it holds nothing that could be lost
        self._process.wait()
        self._close_pipes()

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone, as `answer` finds out
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what is left in the buffer has nobody to go to
                    pipe.close()


def serve() -> None:
    """What a worker does: open a reader, then answer until its trainer is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what somebody prints must not come between two answers
    requests = sys.stdin.buffer
    with suppress(EOFError, BrokenPipeError):
        reader: Reader = pickle.load(requests)()
        while True:
            request = pickle.load(requests)
            try:
                answer: Windows | str = reader.read(*request)
            except DataError as error:
                answer = str(error)
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
