"""Workers that answer requests, and take the place of those that die."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from parallel.errors import UserError
from trainer.rl.workers.body import Facts, Reply

TRIES = 3  # workers that a request may cost: one that kills each of them is not asked again
START_S = 600.0  # for imports, and for a cluster to find room


class Lost(Exception):
    """A worker that died or cannot be reached. The text says how."""


class WorkerError(UserError):
    """Workers that did not start, or did not answer a request. `where` names the worker, `value` the request."""


class Worker(Protocol):
    """A process with a `Body`. name: in errors."""

    @property
    def name(self) -> str: ...

    def send(self, what: str, arguments: tuple[Any, ...]) -> Future[Reply]:
        """Its `Body.answer`. The future raises `Lost` where the worker died before it answered."""
        ...

    def kill(self) -> None:
        """End it at once, with all that it started."""
        ...


@dataclass(eq=False)
class _Place:
    """built: what its `Body.build` answered."""

    worker: Worker
    built: Future[Reply]
    asked: int = 0


@dataclass
class Pool:
    """As many workers as `count`, made by `make` with their names. kind: of worker, for these names. remedy: where they
    do not start. Several threads may ask at the same time."""

    make: Callable[[str], Worker]
    count: int
    kind: str
    remedy: str
    start_s: float = START_S
    _places: list[_Place] = field(default_factory=list, init=False)
    _counts: Counter[str] = field(default_factory=lambda: Counter({"died": 0, "asked_again": 0}), init=False)
    _figures: Counter[str] = field(default_factory=Counter, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _closed: bool = field(default=False, init=False)

    def start(self) -> Facts:
        """Start all workers. Raises WorkerError where one does not start, and what `Body.build` raises."""
        with self._lock:
            self._places = [self._start(number) for number in range(self.count)]
        end, facts = time.monotonic() + self.start_s, Facts()
        try:
            for place in self._places:
                facts = self._built(place, max(0.0, end - time.monotonic()))
        except BaseException:
            self.close()
            raise
        return facts

    def ask(
        self, what: str, *arguments: Any, about: str, prefer: Worker | None = None, seconds: float | None = None
    ) -> tuple[Any, Worker]:
        """Return the result of a method of `Body`, and the worker that gave it. A worker that dies is replaced, and
        another one is asked.

        about: the request, in errors. prefer: asked if it lives; otherwise the one with the fewest requests is.
        seconds: after which the worker is killed. Raises WorkerError, and what the method raises."""
        for again in range(TRIES):
            place = self._choose(prefer, about)
            try:
                reply = place.worker.send(what, arguments).result(seconds)
            except Lost as lost:
                error = lost
                self._replace(place, again < TRIES - 1)
                continue
            except TimeoutError:
                self._replace(place, again=False)
                text = (
                    f"{place.worker.name}: {about}: {what} was not done within {seconds:g} s; look at what it waits for"
                )
                raise WorkerError(text, where=place.worker.name, value=about, allowed="a longer deadline") from None
            finally:
                with self._lock:
                    place.asked -= 1
            with self._lock:
                self._figures.update(reply.figures)
            if reply.error is not None:
                raise reply.error
            return reply.value, place.worker
        text = f"{place.worker.name}: {about}: {what} has no answer: {error}; {TRIES} workers died over it"
        raise WorkerError(text, where=place.worker.name, value=about)

    def counts(self) -> Counter[str]:
        """Figures of the rewards in all workers, and `workers/died` and `workers/asked_again`."""
        with self._lock:
            found = Counter(self._figures)
            found.update({f"workers/{name}": value for name, value in self._counts.items()})
            return found

    def close(self) -> None:
        """Kill all workers."""
        with self._lock:
            self._closed = True
            for place in self._places:
                place.worker.kill()

    def _start(self, number: int) -> _Place:
        worker = self.make(f"{self.kind} {number} of {self.count}")
        return _Place(worker, worker.send("build", ()))

    def _choose(self, prefer: Worker | None, about: str) -> _Place:
        """A place whose worker is ready; waits for one where none is."""
        end = time.monotonic() + self.start_s
        while True:
            with self._lock:
                ready = [place for place in self._places if _is_ready(place)]
                if ready:
                    found = min(ready, key=lambda place: (place.worker is not prefer, place.asked))
                    found.asked += 1
                    return found
                starting = [place.built for place in self._places if not place.built.done()]
            if not starting or not wait(starting, max(0.0, end - time.monotonic()), FIRST_COMPLETED).done:
                for place in self._places:
                    self._built(place, 0.0)
                raise WorkerError(f"{self.kind}: {about}: no worker is left", where=self.kind, value=about)

    def _built(self, place: _Place, seconds: float) -> Facts:
        name = place.worker.name
        try:
            reply = place.built.result(seconds)
        except (TimeoutError, Lost) as error:
            why = f"it died: {error}" if isinstance(error, Lost) else f"it was not ready within {self.start_s:g} s"
            text = f"{name} was not started: {why}; use {self.remedy}"
            raise WorkerError(text, where=name, value="start", allowed=self.remedy) from None
        if reply.error is not None:
            raise reply.error
        facts: Facts = reply.value
        return facts

    def _replace(self, place: _Place, again: bool) -> None:
        """Kill the worker of a place, once, and start another one in it."""
        with self._lock:
            self._counts["asked_again"] += again
            if self._closed or place not in self._places:
                return
            number = self._places.index(place)
            self._counts["died"] += 1
            place.worker.kill()
            self._places[number] = self._start(number)


def _is_ready(place: _Place) -> bool:
    built = place.built
    return built.done() and built.exception() is None and built.result().error is None
