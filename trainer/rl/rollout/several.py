"""Several rollout engines behind one: each question goes to the one with the fewest requests under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, TypeVar

from trainer.engine.request import Request
from trainer.rl.rollout.protocol import Rollout, RolloutEngine
from trainer.rl.servers.buckets import Receiver, Sync, load_into
from trainer.rl.servers.errors import IncompleteError, RestartedError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Served(RolloutEngine, Receiver, Protocol):
    """An engine with weights of its own, which it is sent in buckets."""


class Several:
    """Implements `RolloutEngine`. engines: one or more, which all serve the same model. bucket_bytes: the most weights
    in one bucket, which goes to all of them.

    Where one of them fails, its error, which names it, is raised: no request is asked again of another one.
    """

    def __init__(self, engines: Sequence[Served], bucket_bytes: int) -> None:
        self.engines, self._bucket_bytes = engines, bucket_bytes
        self.last_sync: Sync | None = None
        self._under_way, self._lock = [0] * len(engines), threading.Lock()

    @property
    def version(self) -> int:
        return self.engines[0].version

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """Raises IncompleteError with all answers that are there, RestartedError if any engine was started anew."""
        shares = self._divide(requests)

        def ask(engine: int, places: Sequence[int]) -> dict[int, Rollout]:
            try:
                mine = [requests[place] for place in places]
                return dict(zip(places, self.engines[engine].generate(mine, deadline_s=deadline_s), strict=True))
            finally:
                with self._lock:
                    self._under_way[engine] -= len(places)

        calls = [partial(ask, engine, places) for engine, places in shares.items()]
        found: dict[int, Rollout] = {}
        errors: list[BaseException] = []
        for places, one in zip(shares.values(), _side_by_side(calls), strict=True):
            if isinstance(one, IncompleteError):
                found |= {places[at]: rollout for at, rollout in one.finished.items()}
            if isinstance(one, BaseException):
                errors.append(one)
            else:
                found |= one
        if errors:
            error = next((one for one in errors if isinstance(one, RestartedError)), errors[0])
            if isinstance(error, IncompleteError):
                where, value, allowed = error.where, error.value, error.allowed
                raise IncompleteError(str(error), where=where, value=value, allowed=allowed, finished=found) from None
            raise error
        return [found[place] for place in range(len(requests))]

    def _divide(self, requests: Sequence[Request]) -> Mapping[int, list[int]]:
        """The places of the requests of each engine that gets some; those to one prompt, one after another, stay
        together."""
        shares: dict[int, list[int]] = {}
        with self._lock:
            for _, places in groupby(range(len(requests)), key=lambda place: tuple(requests[place].prompt)):
                question = [*places]
                engine = self._under_way.index(min(self._under_way))
                self._under_way[engine] += len(question)
                shares.setdefault(engine, []).extend(question)
        return shares

    def pause(self) -> None:
        self._all([engine.pause for engine in self.engines])

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """A load that fails leaves all engines without whole weights, until the next one has reached them all."""
        self.last_sync = load_into(self.engines, weights, version, self._bucket_bytes)

    def resume(self) -> None:
        self._all([engine.resume for engine in self.engines])

    def close(self) -> None:
        self._all([engine.close for engine in self.engines])

    def _all(self, calls: Sequence[Callable[[], None]]) -> None:
        for one in _side_by_side(calls):
            if one is not None:
                raise one


def _side_by_side(calls: Sequence[Callable[[], T]]) -> list[T | BaseException]:
    """Return what each call returns or raises. Threads are daemons: one that hangs does not keep the process alive."""
    found: list[T | BaseException] = [AssertionError("not called")] * len(calls)

    def work(at: int) -> None:
        try:
            found[at] = calls[at]()
        except BaseException as error:
            found[at] = error

    threads = [threading.Thread(target=work, args=(at,), name="engine", daemon=True) for at in range(1, len(calls))]
    for thread in threads:
        thread.start()
    if calls:
        work(0)
    for thread in threads:
        thread.join()
    return found
