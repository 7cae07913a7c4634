"""Rollout engines on the machines of a Ray cluster: `pip install -e '.[ray]'`.

Without Ray, engines run in the processes that train, or are servers that something else starts.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainer.engine.request import Request
from trainer.rl.rollout.protocol import Rollout, RolloutEngine, RolloutError
from trainer.rl.servers.buckets import BUCKET_MB, Bucket, Sync, buckets_of
from trainer.rl.servers.errors import IncompleteError, RestartedError, fault
from trainer.rl.workers.actors import connect, lost_text

CONTROL_S = 600.0
LATE_S = 5.0  # that a worker may take to report its own deadline
STARTS = 3  # of engines that die before they have started, one after the other
AT_ONCE = 64  # calls of a worker: a pause comes while answers are generated and others wait


class _Holder:
    """An actor; what it holds is an engine that takes buckets (`Receiver`)."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._engine = make()

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self._engine, name)(*arguments, **named)

    def version(self) -> int:
        return int(self._engine.version)


@dataclass(eq=False)
class _Worker:
    """An actor. version: the reference of its first answer, which is there once it has started. whole: it has the
    weights that are served."""

    number: int
    actor: Any
    version: Any
    whole: bool = False


class RayWorkers:
    """Implements `RolloutEngine` by as many engines, each an actor, that share the requests evenly.

    make: makes an engine in the actor, such as `partial(OwnEngine, directory)`; one whose version is negative has no
    weights before the first load. address: as of `connect`. cpus, gpus: that Ray reserves for each engine; it chooses
    the machines in turn. A load goes to all engines, a bucket at a time, through Ray's store, which copies it to each
    machine once.

    An engine that dies is replaced, and its requests are asked again of the others, within the deadline; the new one
    takes part from the first load on that finds it started. `counts`: engines that `died`, and requests `asked_again`.
    Where an engine is late or refuses, or none is left, one line names it and the request.
    Raises UserError without Ray or a cluster, RolloutError where engines cannot be started.
    """

    def __init__(
        self,
        make: Callable[[], RolloutEngine],
        count: int,
        *,
        address: str | None = None,
        cpus: float = 1,
        gpus: float = 0,
        bucket_mb: int = BUCKET_MB,
        start_s: float = CONTROL_S,
    ) -> None:
        self._ray, self._bucket_bytes = connect("rl.engine", "ray", address), bucket_mb << 20
        self._make, self._count, self._start_s = make, count, start_s
        self._options = {
            "num_cpus": cpus, "num_gpus": gpus, "max_concurrency": AT_ONCE, "scheduling_strategy": "SPREAD"
        }  # fmt: skip
        self.name = f"{count} Ray workers"
        self.last_sync: Sync | None = None
        self.counts = Counter({"died": 0, "asked_again": 0})
        self._lock, self._incomplete = threading.RLock(), ""
        self._workers = [self._new(number) for number in range(count)]
        self.version = -1
        try:
            for version in self._all(self._workers, lambda worker: worker.version, "start", start_s):
                self.version = version
        except RolloutError:
            self.close()
            raise
        if self.version < 0:
            self._incomplete = "the engines have no weights"
        for worker in self._workers:
            worker.whole = self.version >= 0

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """Raises IncompleteError, with the answers of the other engines, where an engine fails or is late;
        RestartedError where all of them died: new ones were started."""
        if self._incomplete:
            raise fault(self.name, self._incomplete, "generate", "load whole weights first")
        end, found = time.monotonic() + deadline_s, dict[int, Rollout]()
        while missing := [place for place in range(len(requests)) if place not in found]:
            with self._lock:
                workers = [worker for worker in self._workers if worker.whole]
            if not workers:
                text = f"{self.name}: all of them died, and request {missing[0]} of {len(requests)} has no answer"
                remedy = "load the weights again"
                raise RestartedError(f"{text}; {remedy}", where=self.name, value=missing[0], allowed=remedy)
            shares = [missing[at :: len(workers)] for at in range(len(workers))]
            self._ask(requests, [*zip(workers, shares, strict=True)], end, found)
        return [found[place] for place in range(len(requests))]

    def _ask(
        self,
        requests: Sequence[Request],
        shares: Sequence[tuple[_Worker, list[int]]],
        end: float,
        found: dict[int, Rollout],
    ) -> None:
        """Add the answers to the requests at these places, but for those of workers that die."""
        left = max(0.0, end - time.monotonic())
        asked = [
            (worker, places, worker.actor.call.remote("generate", [requests[at] for at in places], deadline_s=left))
            for worker, places in shares
            if places
        ]
        failures: list[tuple[int, _Worker, str]] = []
        for worker, places, reference in asked:
            left = max(0.0, end + LATE_S - time.monotonic())
            try:
                answers = self._ray.get(reference, timeout=None if math.isinf(left) else left)
            except self._ray.exceptions.RayError as error:
                if self._died(error):
                    self._replace(worker, len(places))
                    continue
                finished, text = self._failure(error)
                found |= {places[at]: one for at, one in finished.items()}
                failures.append((next(place for place in places if place not in found), worker, text))
            else:
                found |= dict(zip(places, answers, strict=True))
        if failures:
            first, worker, text = min(failures, key=lambda one: one[0])
            where = self._name_of(worker)
            missing = len(requests) - len(found)
            line = f"{where}: request {first} and {missing - 1} more of {len(requests)} have no answer: {text}"
            raise IncompleteError(line, where=where, value=first, allowed="start the workers again", finished=found)

    def pause(self) -> None:
        """Also where engines died: new ones are not needed before the next load."""
        self._call("pause", needed=False)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """To all engines that have started, those among them that took the place of others."""
        started, sent, count, tensors = time.monotonic(), 0, 0, 0
        self._incomplete = f"not all engines have the weights of version {version}"
        for _ in range(STARTS):
            for worker in self._started():
                worker.whole = True  # unless it dies
            if self._call("pause", needed=False):  # new ones were not paused, and others may have died since
                break
        self._call("start_load")
        for bucket in buckets_of(weights, self._bucket_bytes):
            self._take(bucket)
            sent, count, tensors = sent + bucket.nbytes, count + 1, tensors + len(bucket.names)
        self._call("finish_load", version)
        self.version, self._incomplete = version, ""
        self.last_sync = Sync(version, time.monotonic() - started, sent, count, tensors)

    def _take(self, bucket: Bucket) -> None:
        shared = self._ray.put(bucket)
        self._call("take", shared)

    def resume(self) -> None:
        if self._incomplete:
            raise fault(self.name, self._incomplete, "resume", "load whole weights first")
        self._call("resume", needed=False)  # `generate` reports it where none is left

    def close(self) -> None:
        """End the actors. The cluster stays."""
        for worker in self._workers:
            self._ray.kill(worker.actor)

    # ---- workers ----

    def _new(self, number: int) -> _Worker:
        actor = self._ray.remote(_Holder).options(**self._options).remote(self._make)
        return _Worker(number, actor, actor.version.remote())

    def _started(self) -> list[_Worker]:
        """The workers that have started; waits for one where none has."""
        end, lost = time.monotonic() + self._start_s, ""
        for _ in range(STARTS):
            waiting = {worker.version: worker for worker in self._workers}
            self._ray.wait([*waiting], num_returns=1, timeout=max(0.0, end - time.monotonic()))
            ready, _ = self._ray.wait([*waiting], num_returns=len(waiting), timeout=0)
            found = list[_Worker]()
            for reference in ready:
                try:
                    self._ray.get(reference)
                    found.append(waiting[reference])
                except self._ray.exceptions.RayError as error:  # it died before it had started
                    lost = f": {self._failure(error)[1]}"
                    self._replace(waiting[reference])
            if found:
                return found
        text = f"no engine started within {self._start_s:g} s{lost}"
        raise fault(self.name, text, "start", "give the cluster room for them")

    def _replace(self, worker: _Worker, requests: int = 0) -> None:
        with self._lock:
            self.counts["asked_again"] += requests
            if self._workers[worker.number] is worker:
                self.counts["died"] += 1
                self._ray.kill(worker.actor)
                self._workers[worker.number] = self._new(worker.number)

    def _name_of(self, worker: _Worker) -> str:
        return f"Ray worker {worker.number} of {self._count}"

    def _died(self, error: Exception) -> bool:
        """True for an error of the machine or of Ray, False for one of the engine and for a deadline."""
        return not isinstance(error, (self._ray.exceptions.RayTaskError, self._ray.exceptions.GetTimeoutError))

    def _failure(self, error: Exception) -> tuple[dict[int, Rollout], str]:
        """The answers that a worker finished, by its own places, and why it has no more."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, IncompleteError):
            return cause.finished, str(cause)
        if isinstance(error, self._ray.exceptions.GetTimeoutError):
            return {}, "no reply within the deadline"
        return {}, str(cause) if isinstance(cause, RolloutError) else lost_text(error)

    def _call(self, name: str, *arguments: Any, needed: bool = True) -> list[Any]:
        """Call all engines that have the weights or take them; one that dies takes no further part. needed: an error
        where none is left."""
        with self._lock:
            workers = [worker for worker in self._workers if worker.whole]
        return self._all(
            workers, lambda worker: worker.actor.call.remote(name, *arguments), name, CONTROL_S, needed=needed
        )

    def _all(
        self,
        workers: Sequence[_Worker],
        ask: Callable[[_Worker], Any],
        what: str,
        timeout_s: float,
        *,
        needed: bool = True,
    ) -> list[Any]:
        asked = [(worker, ask(worker)) for worker in workers]
        end, found, lost = time.monotonic() + timeout_s, list[Any](), ""
        for worker, reference in asked:
            try:
                found.append(self._ray.get(reference, timeout=max(0.0, end - time.monotonic())))
            except self._ray.exceptions.RayError as error:
                where, text = self._name_of(worker), self._failure(error)[1]
                if what == "start" or not self._died(error):
                    raise fault(where, f"{what} failed: {text}", what) from None
                self._replace(worker)
                lost = f"{where} died: {text}"
        if needed and not found:
            raise fault(self.name, f"{what} failed: none is left; {lost}", what)
        return found
