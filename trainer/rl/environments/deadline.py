"""Work that may hang, with a deadline. A thread cannot be ended from outside: one that is late is left behind as a
daemon, which ends with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
THREADS = 16


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


def call_all(calls: Sequence[Callable[[], T]], seconds: float, threads: int = THREADS) -> list[T]:
    """The results of calls without arguments, made side by side, in their order.

    seconds: for each call. Raises Late for the first that takes longer, and Raised for the first that raises.
    """
    results: list[Any] = [None] * len(calls)
    errors: dict[int, BaseException] = {}
    running: dict[int, float] = {}  # number -> when it started; never more than there are threads
    done = 0
    todo = iter(range(len(calls)))
    changed = threading.Condition()
    stopped = False

    def work() -> None:
        nonlocal done
        while True:
            with changed:
                number = next(todo, None)
                if number is None or stopped:
                    return
                running[number] = time.monotonic()
            failure: BaseException | None = None
            try:
                results[number] = calls[number]()
            except BaseException as error:
                failure = error
            with changed:
                if failure is not None:
                    errors[number] = failure
                del running[number]
                done += 1
                changed.notify()

    for _ in range(min(threads, len(calls))):
        threading.Thread(target=work, daemon=True, name="environment").start()
    with changed:
        while done < len(calls):
            now = time.monotonic()
            late = [number for number, at in running.items() if now - at >= seconds]
            if late:
                stopped = True
                raise Late(min(late))
            if errors:
                break
            changed.wait(max(0.001, min(running.values(), default=now) + seconds - now))
        stopped = True
        if errors:
            number = min(errors)
            raise Raised(number, errors[number])
    return results
