"""Compares mathematical answers with a deadline."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from dataclasses import dataclass, field

WORKER = "trainer.evaluation.scorers.mathematics.worker"


@dataclass
class Verifier:
    """Asks one worker process, which is started when first needed and again after a deadline passed.

    seconds: for one answer; sympy may need hours to simplify what a model writes. start_seconds: for the first, which
    waits for sympy's import. Threads take turns.
    """

    seconds: float = 10.0
    start_seconds: float = 60.0
    _process: subprocess.Popen[str] | None = field(default=None, init=False, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __call__(self, answer: str, reference: str) -> bool | None:
        """True if the answer's last expression equals the reference; None if it has none; False after the deadline."""
        with self._turn:
            started = self._process is None or self._process.poll() is not None
            if started:
                self.close()
                command = [sys.executable, "-m", WORKER]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            return self._ask(json.dumps([answer, reference]), self.start_seconds if started else self.seconds)

    def _ask(self, line: str, seconds: float) -> bool | None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(line, file=process.stdin, flush=True)
        except BrokenPipeError:
            self.close()
            return False
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        reply = process.stdout.readline() if ready else ""
        if not reply:  # too late, or the worker died
            self.close()
            return False
        verdict: bool | None = json.loads(reply)
        return verdict

    def close(self) -> None:
        """Ends the worker; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
