"""Work that may hang, with a deadline. A thread cannot be ended from outside: one that is late is left behind as a
daemon, which ends with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Late(Exception):
    """number: of the first of the calls that was not done."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Raised(Exception):
    """number: of the call that raised `error`."""

    def __init__(self, number: int, error: BaseException) -> None:
        super().__init__(number)
        self.number, self.error = number, error


def call_all(calls: Sequence[Callable[[], T]], seconds: float, threads: int = 16) -> list[T]:
    """The results of calls without arguments, made side by side, in their order.

    seconds: for each call. Raises Late for the first that takes longer, and Raised for the first that raises.
    """
    results: list[Any] = [None] * len(calls)
    errors: dict[int, BaseException] = {}
    started: dict[int, float] = {}
    done: set[int] = set()
    todo = iter(range(len(calls)))
    changed = threading.Condition()
    stopped = False

    def work() -> None:
        while True:
            with changed:
                number = next(todo, None)
                if number is None or stopped:
                    return
                started[number] = time.monotonic()
            try:
                results[number] = calls[number]()
            except BaseException as error:
                errors[number] = error
            with changed:
                done.add(number)
                changed.notify()

    for _ in range(min(threads, len(calls))):
        threading.Thread(target=work, daemon=True, name="environment").start()
    with changed:
        while len(done) < len(calls):
            now = time.monotonic()
            late = [number for number, at in started.items() if number not in done and now - at >= seconds]
            if late:
                stopped = True
                raise Late(min(late))
            if errors:
                break
            running = [at for number, at in started.items() if number not in done]
            changed.wait(max(0.001, min(running, default=now) + seconds - now))
        stopped = True
    if errors:
        number = min(errors)
        raise Raised(number, errors[number])
    return results
