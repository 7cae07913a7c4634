"""Tasks of the workers that the tests start."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def double(job: Any, report: Callable[[Any], None]) -> Any:
    """Twice the job; or does what its name says."""
    match job:
        case "fail":
            raise FileNotFoundError(2, "No such file or directory", "a/file")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "pid":
            return os.getpid()
        case "modules":
            return sorted(sys.modules)
        case "print":
            print("not an answer", flush=True)
            return "printed"
        case "sleep":
            time.sleep(60)
        case "report forever":
            while True:
                report("still here")
                time.sleep(0.01)
    for n in range(2):
        report(n)
    return job * 2


def start() -> Callable[[Any, Callable[[Any], None]], Any]:
    return double


def cannot_start() -> Callable[[Any, Callable[[Any], None]], Any]:
    raise FileNotFoundError(2, "No such file or directory", "a/source")


def start_elsewhere(path: str) -> Callable[[Any, Callable[[Any], None]], Any]:
    return double
