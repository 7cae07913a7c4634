"""Rollout engines on the machines of a Ray cluster: `pip install -e '.[ray]'`.

Without Ray, engines run in the processes that train, or are servers that something else starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from trainer.engine.request import Request
from trainer.rl.rollout.protocol import Rollout, RolloutEngine, RolloutError
from trainer.rl.servers.buckets import BUCKET_MB, Bucket, Sync, buckets_of
from trainer.rl.servers.errors import IncompleteError, fault

CONTROL_S = 600.0
LATE_S = 5.0  # that a worker may take to report its own deadline


class _Worker:
    """An actor; what it holds is an engine that takes buckets (`Receiver`)."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._engine = make()

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self._engine, name)(*arguments, **named)

    def version(self) -> int:
        return int(self._engine.version)


class RayWorkers:
    """Implements `RolloutEngine` by as many engines, each an actor, that share the requests evenly.

    make: makes an engine in the actor, such as `partial(OwnEngine, directory)`. address: of the cluster; None: the one
    of the environment, or a new one on this machine. cpus, gpus: that Ray reserves for each engine. A load goes to all
    engines, a bucket at a time, through Ray's store, which copies it to each machine once; where one engine fails, none
    answers until a load has reached all.
    Raises RolloutError where engines cannot be started.
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
        import ray

        self._ray, self._bucket_bytes = ray, bucket_mb << 20
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        self.name = f"{count} Ray workers"
        self.last_sync: Sync | None = None
        self._incomplete = ""
        # Two calls at one time: a pause comes while answers are generated.
        actor = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)
        self._workers = [actor.remote(make) for _ in range(count)]
        versions = self._all([one.version.remote() for one in self._workers], "start", start_s)
        self.version: int = versions[0]

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """Raises IncompleteError, with the answers of the other engines, where an engine fails or is late."""
        if self._incomplete:
            raise fault(self.name, self._incomplete, "generate", "load whole weights first")
        count, end = len(self._workers), time.monotonic() + deadline_s
        asked = [
            worker.call.remote("generate", [*requests[number::count]], deadline_s=deadline_s)
            for number, worker in enumerate(self._workers)
            if requests[number::count]
        ]
        found: dict[int, Rollout] = {}
        failures: list[tuple[int, int, str]] = []
        for number, reference in enumerate(asked):
            left = max(0.0, end + LATE_S - time.monotonic())
            places = range(number, len(requests), count)
            try:
                answers = dict(zip(places, self._ray.get(reference, timeout=left), strict=True))
            except self._ray.exceptions.RayError as error:
                answers, text = self._failure(error, places)
                first = next(place for place in places if place not in answers)
                failures.append((first, number, text))
            found |= answers
        if failures:
            first, number, text = min(failures)
            where = f"Ray worker {number} of {count}"
            missing = len(requests) - len(found)
            line = f"{where}: request {first} and {missing - 1} more of {len(requests)} have no answer: {text}"
            raise IncompleteError(line, where=where, value=first, allowed="start the workers again", finished=found)
        return [found[place] for place in range(len(requests))]

    def _failure(self, error: Exception, places: range) -> tuple[dict[int, Rollout], str]:
        cause = getattr(error, "cause", None)
        if isinstance(cause, IncompleteError):
            return {places[place]: one for place, one in cause.finished.items()}, str(cause)
        if isinstance(error, self._ray.exceptions.GetTimeoutError):
            return {}, "no reply within the deadline"
        if isinstance(cause, RolloutError):
            return {}, str(cause)
        return {}, " ".join(f"{type(error).__name__}: {error}".split())[:300]

    def pause(self) -> None:
        self._call("pause")

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        started, sent, count, tensors = time.monotonic(), 0, 0, 0
        self._incomplete = f"not all engines have the weights of version {version}"
        self._call("start_load")
        for bucket in buckets_of(weights, self._bucket_bytes):
            self._take(bucket)
            sent, count, tensors = sent + bucket.nbytes, count + 1, tensors + len(bucket.names)
        self._call("finish_load", version)
        self.version, self._incomplete = version, ""
        self.last_sync = Sync(version, time.monotonic() - started, sent, count, tensors)

    def _take(self, bucket: Bucket) -> None:
        shared = self._ray.put(bucket)
        self._all([one.call.remote("take", shared) for one in self._workers], "take", CONTROL_S)

    def resume(self) -> None:
        if self._incomplete:
            raise fault(self.name, self._incomplete, "resume", "load whole weights first")
        self._call("resume")

    def close(self) -> None:
        """End the actors. The cluster stays."""
        for worker in self._workers:
            self._ray.kill(worker)

    def _call(self, name: str, *arguments: Any) -> None:
        self._all([one.call.remote(name, *arguments) for one in self._workers], name, CONTROL_S)

    def _all(self, references: list[Any], what: str, timeout_s: float) -> list[Any]:
        end, found = time.monotonic() + timeout_s, []
        for number, reference in enumerate(references):
            try:
                found.append(self._ray.get(reference, timeout=max(0.0, end - time.monotonic())))
            except self._ray.exceptions.RayError as error:
                where = f"Ray worker {number} of {len(references)}"
                raise fault(where, f"{what} failed: {self._failure(error, range(0))[1]}", what) from None
        return found
