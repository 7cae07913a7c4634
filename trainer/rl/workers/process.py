"""Workers as processes of this machine. A message is its length, 8 bytes, and a pickle; replies bear the number of
their request.

python -m trainer.rl.workers.process    what `ProcessWorker` starts
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from typing import IO, Any

from trainer.rl.workers.body import AT_ONCE, Body, Given, Reply
from trainer.rl.workers.pool import Lost

LENGTH = 8


class ProcessWorker:
    """Implements `Worker`. It has a session of its own, so that signals to the run do not reach it, and ends with the
    process that started it."""

    def __init__(self, name: str, given: Given) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer.rl.workers.process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.name = f"{name} (process {self._process.pid})"
        self._waiting: dict[int, Future[Reply]] = {}
        self._numbers, self._lock, self._dead = count(), threading.Lock(), ""
        threading.Thread(target=self._read, daemon=True, name=name).start()
        self._write(given)

    def send(self, what: str, arguments: tuple[Any, ...]) -> Future[Reply]:
        number, future = next(self._numbers), Future[Reply]()
        with self._lock:
            if self._dead:
                future.set_exception(Lost(self._dead))
                return future
            self._waiting[number] = future
        self._write((number, what, arguments))
        return future

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _write(self, message: Any) -> None:
        assert self._process.stdin is not None
        packed = pickle.dumps(message)
        with self._lock, suppress(BrokenPipeError):  # `_read` notices as well
            if not self._dead:
                _write_to(self._process.stdin, packed)

    def _read(self) -> None:
        assert self._process.stdout is not None
        while (packed := _read_from(self._process.stdout)) is not None:
            number, reply = pickle.loads(packed)
            with self._lock:
                future = self._waiting.pop(number)
            future.set_result(reply)
        code = self._process.wait()
        how = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        with self._lock:
            self._dead, left = how, [*self._waiting.values()]
            self._waiting.clear()
        for future in left:
            future.set_exception(Lost(how))
        assert self._process.stdin is not None
        self._process.stdout.close()
        with suppress(BrokenPipeError):
            self._process.stdin.close()


def _write_to(file: IO[bytes], packed: bytes) -> None:
    file.write(len(packed).to_bytes(LENGTH, "little") + packed)
    file.flush()


def _read_from(file: IO[bytes]) -> bytes | None:
    """The next message; None at the end, also in the middle of one."""
    length = file.read(LENGTH)
    if len(length) < LENGTH:
        return None
    size = int.from_bytes(length, "little")
    packed = file.read(size)
    return packed if len(packed) == size else None


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer until the requests end."""
    opened = _read_from(requests)
    if opened is None:
        return
    body, lock = Body(pickle.loads(opened)), threading.Lock()

    def work(number: int, answer: Callable[[], Reply]) -> None:
        packed = pickle.dumps((number, answer()))
        with lock:
            _write_to(replies, packed)

    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="request")
    while (packed := _read_from(requests)) is not None:
        number, what, arguments = pickle.loads(packed)
        pool.submit(work, number, partial(body.answer, what, arguments))


def main() -> None:
    """Replies have the standard output for themselves: what a library prints there goes to the standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    serve(sys.stdin.buffer, replies)
    os._exit(0)  # also where a request hangs: no process waits for its reply


if __name__ == "__main__":
    main()
