"""A process that answers questions one at a time, with a deadline for each."""

from __future__ import annotations

import json
import os
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
    _asked: int = field(default=0, init=False, repr=False)

    def ask(self, question: Any) -> Any:
        """The answer; both are JSON. Raises TimeoutError if it is late, and if the process dies over it; ValueError for
        a reply that is not one to this question. After any of these the next question starts another process."""
        with self._turn:
            started = self._process is None or self._process.poll() is not None
            if started:
                self.close()
                command = [sys.executable, "-m", self.module]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._asked += 1
            return self._ask(question, self.start_seconds if started else self.seconds)

    def _ask(self, question: Any, seconds: float) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps([self._asked, question]), file=process.stdin, flush=True)
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            reply = process.stdout.readline() if ready else ""
        except BrokenPipeError:
            reply = ""
        if not reply:
            self.close()
            raise TimeoutError(f"{self.module} gave no answer in {seconds} s")
        try:
            number, answer = json.loads(reply)
            if number != self._asked:
                raise ValueError
        except (ValueError, TypeError):
            self.close()
            raise ValueError(f"{self.module} replied {reply[:100]!r}, which is not to question {self._asked}") from None
        return answer

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve(answer: Callable[[Any], Any]) -> None:
    """Answers each line of the input with a line; returns when the input ends, hence with the process that asks.

    Replies have the standard output for themselves: what a library prints there goes to the standard error."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        for line in sys.stdin:
            number, question = json.loads(line)
            print(json.dumps([number, answer(question)]), file=replies, flush=True)
