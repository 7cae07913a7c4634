"""Signals in the first seconds of a process, before there is anything to save. No torch here."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from parallel.health.terminal import write_line

INTERRUPTED = "interrupted before anything started"


@contextlib.contextmanager
def exiting_on_interrupt() -> Iterator[None]:
    """While entered, Ctrl-C ends the process at once, with a line, exit code 130 and without cleaning up.

    For imports that take seconds: an exception raised inside of them is swallowed or changed by some of their C code,
    and they leave nothing to clean up.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        if first_rank():
            write_line(INTERRUPTED)
        os._exit(128 + number)

    with _handling((signal.SIGINT,), leave):
        yield


def first_rank() -> bool:
    """Return True for the process of a run, or of a command, that prints what concerns all."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def cleaning_up_on_termination() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP end the process by way of its `finally` clauses, with exit code 143 and 129.

    Without it they end the process where it is, and its temporary directories stay.
    """
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    with _handling(numbers, leave):
        yield


@contextlib.contextmanager
def _handling(
    numbers: tuple[int, ...] | list[signal.Signals], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
