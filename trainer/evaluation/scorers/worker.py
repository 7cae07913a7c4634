"""A process that answers questions one at a time, with a deadline for each."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Worker:
    """Asks `python -m MODULE`, which is started when first needed and again after it died or was late.

    seconds: for one question. start_seconds: for the first, which waits for imports. Threads take turns.
    """

    module: str
    seconds: float = 10.0
    start_seconds: float = 60.0
    _process: subprocess.Popen[str] | None = field(default=None, init=False, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def ask(self, question: Any) -> Any:
        """The answer; both are JSON. Raises TimeoutError if it is late, and if the process dies over it."""
        with self._turn:
            started = self._process is None or self._process.poll() is not None
            if started:
                self.close()
                command = [sys.executable, "-m", self.module]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            return self._ask(json.dumps(question), self.start_seconds if started else self.seconds)

    def _ask(self, line: str, seconds: float) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(line, file=process.stdin, flush=True)
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            reply = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            reply = ""
        if not reply:
            self.close()
            raise TimeoutError(f"{self.module} gave no answer in {seconds} s")
        return json.loads(reply)

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve(answer: Callable[[Any], Any]) -> None:
    """Answers each line of the input with a line; returns when the input ends, hence with the process that asks."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
