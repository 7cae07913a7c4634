"""Ctrl-C and SIGTERM as a request: the loop finishes its step, saves and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from parallel.errors import UserError
from parallel.health.terminal import leave_terminal, write_line
from trainer.config.errors import report

# torchrun forwards a terminal's Ctrl-C to workers that have already received it from the terminal. Only a signal that
# comes at least this many seconds after the first is a second request.
ECHO_S = 1.0


def report_stop(number: signal.Signals, step: int, newest: str, again: str | None, *, saved: bool) -> None:
    """Print that a signal stopped the run after `step`. newest: its newest checkpoint. again: overrides that continue
    it; None where the same command does."""
    continues = "the same command continues it" if again is None else f"{again} continues it"
    with suppress(OSError):  # the terminal may be what has gone
        if saved:
            text = f"stopped by {number.name} after step {step}; saved in {newest}; {continues}"
            print(text, file=sys.stderr, flush=True)
        else:
            text = f"stopped by {number.name}, but step {step} could not be saved; {newest} is kept"
            report(UserError(text, where=newest, allowed="a disk with free space"))


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is recorded in `signal`; a later one ends the process at once.

    A closed terminal (SIGHUP) counts as SIGTERM, unless it is ignored, as under nohup.

    silent: called before each message; True suppresses it, because another rank prints it, or because the run is ending
    and the signal is the launcher's, which ends the remaining ranks.
    """

    def __init__(self, *, silent: Callable[[], bool] = lambda: False) -> None:
        self.silent = silent
        self.signal: int | None = None
        self._requested_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            self._before = {number: signal.signal(number, self._record) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, number: int) -> bool:
        """True if the first signal was this one; SIGHUP counts as SIGTERM."""
        return self.signal == number

    def _record(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is None:
            self.signal = signal.SIGTERM if number == signal.SIGHUP else number
            self._requested_at = time.monotonic()
            self._print(f"{name}: finishing the step, then saving; again to quit now")
        elif time.monotonic() - self._requested_at > ECHO_S:
            leave_terminal()
            self._print(f"{name} again: quitting without a save")
            os._exit(128 + number)

    def _print(self, line: str) -> None:
        if not self.silent():
            write_line(line)  # print may be what the signal interrupted
