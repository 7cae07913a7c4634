"""Several processes of one kind, and the figures that their rewards report."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from trainer.evaluation.scorers.worker import Worker


class Workers:
    """`python -m MODULE` as many times as threads ask at once, up to `count`; each is started when first needed.

    seconds: for one question. Counts questions that were late (`timeouts`).
    """

    def __init__(self, module: str, count: int, seconds: float) -> None:
        self._free: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._lock, self._counts = threading.Lock(), Counter[str]()
        for _ in range(count):
            self._free.put(Worker(module, seconds=seconds))

    def ask(self, question: Any) -> Any:
        """The answer, both JSON; waits for a free process. Raises TimeoutError if it is late or the process died."""
        worker = self._free.get()
        try:
            return worker.ask(question)
        except TimeoutError:
            self.count("timeouts")
            raise
        finally:
            self._free.put(worker)

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    @property
    def counts(self) -> Mapping[str, int]:
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """End the processes. Those in use are ended by their deadline, or with this process."""
        while True:
            try:
                self._free.get_nowait().close()
            except queue.Empty:
                return
