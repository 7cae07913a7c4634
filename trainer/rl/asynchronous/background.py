"""Engines whose requests stay under way between rounds: the embedded one, and one beside training."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping
from typing import Protocol

from trainer.engine.request import Request
from trainer.rl.rollout.embedded import NAME, Embedded
from trainer.rl.rollout.protocol import Rollout, RolloutEngine, RolloutError
from trainer.rl.servers.remote import Remote


class Background(Protocol):
    """Collective over the ranks of an engine. Requests have numbers of the caller's, which differ over all ranks but
    those that ask for the same. name: in errors. overlaps: the engine draws while training computes. drawn: tokens of
    this rank's requests so far, as far as it is known.
    """

    name: str
    overlaps: bool
    drawn: int

    def start(self, requests: Mapping[int, Request]) -> None:
        """Start this rank's requests."""
        ...

    def collect(self, wanted: Collection[int], deadline_s: float) -> dict[int, Rollout]:
        """Wait until these requests of this rank are done. Returns all of it that are, each once. Raises RolloutError
        after deadline_s seconds."""
        ...

    def stop(self) -> dict[int, Rollout]:
        """End all requests: those that are done, and the others as "abort" with the tokens that they have."""
        ...


class Within:
    """Implements `Background` with the embedded engine, which draws while it is waited for. A token of every request
    is drawn in a step of it, so that what there is does not depend on the number of ranks, as long as their requests
    are not more than `rl.concurrent`."""

    name, overlaps = NAME, False

    def __init__(self, engine: Embedded) -> None:
        self.engine, self.drawn = engine, 0
        self._mine: set[int] = set()

    def start(self, requests: Mapping[int, Request]) -> None:
        self._mine |= requests.keys()
        self.engine.start(requests)

    def collect(self, wanted: Collection[int], deadline_s: float) -> dict[int, Rollout]:
        end, found, left = time.monotonic() + deadline_s, dict[int, Rollout](), set(wanted)
        with self.engine.serving():
            while any(self.engine.world.gather_count(len(left))):
                self.drawn += sum(number in self._mine for number in self.engine.advance())
                found |= self.engine.take()
                left -= found.keys()
                if time.monotonic() > end and left:
                    raise _late(NAME, min(left), deadline_s)
        return self._own(found)

    def stop(self) -> dict[int, Rollout]:
        found = self._own(self.engine.interrupt())
        self._mine.clear()
        return found

    def _own(self, found: dict[int, Rollout]) -> dict[int, Rollout]:
        mine = {number: one for number, one in found.items() if number in self._mine}
        self._mine -= mine.keys()
        return mine


class Beside:
    """Implements `Background` with an engine that answers beside training: rank 0 has a thread for each group of
    requests, without a deadline before `collect` waits for it; at most `concurrent` requests are asked at a time. name:
    in errors. size: of a group."""

    overlaps = True

    def __init__(self, remote: Remote, name: str, *, size: int, concurrent: int) -> None:
        self.remote, self.name, self.size = remote, name, size
        self.drawn = 0
        self._gate = threading.BoundedSemaphore(max(1, concurrent // size))
        self._changed = threading.Condition()
        self._done: dict[int, Rollout] = {}
        self._failed: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._mine: set[int] = set()
        self._stopping = False

    def start(self, requests: Mapping[int, Request]) -> None:
        self._mine |= requests.keys()
        every = {number: one for of_rank in self.remote.world.gather(requests) for number, one in of_rank.items()}
        if self.remote.engine is None:
            return
        groups: dict[int, dict[int, Request]] = {}
        for number in sorted(every):
            groups.setdefault(number // self.size, {})[number] = every[number]
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for number, group in groups.items():
            name = f"rollouts of question {number}"
            thread = threading.Thread(target=self._ask, args=(self.remote.engine, group), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _ask(self, engine: RolloutEngine, group: Mapping[int, Request]) -> None:
        try:
            with self._gate:
                if self._stopping:
                    return
                found = engine.generate([*group.values()], deadline_s=math.inf)
        except BaseException as error:  # for `collect`, on the thread that trains
            with self._changed:
                self._failed = self._failed or error
                self._changed.notify_all()
            return
        with self._changed:
            self._done |= dict(zip(group, found, strict=True))
            self._changed.notify_all()

    def collect(self, wanted: Collection[int], deadline_s: float) -> dict[int, Rollout]:
        every = {number for of_rank in self.remote.world.gather(set(wanted)) for number in of_rank}
        return self._own(self.remote.on_first(lambda: self._wait(every, deadline_s)))

    def _wait(self, wanted: set[int], deadline_s: float) -> dict[int, Rollout]:
        with self._changed:
            there = self._changed.wait_for(
                lambda: self._failed is not None or wanted <= self._done.keys(), timeout=deadline_s
            )
            if self._failed is not None:
                raise self._failed
            if not there:
                raise _late(self.name, min(wanted - self._done.keys()), deadline_s)
            found, self._done = self._done, {}
        return found

    def stop(self) -> dict[int, Rollout]:
        found = self._own(self.remote.on_first(self._end))
        self._mine.clear()
        return found

    def _end(self) -> dict[int, Rollout]:
        engine = self.remote.engine
        assert engine is not None
        if any(thread.is_alive() for thread in self._threads):
            self._stopping = True
            try:
                engine.pause()
                for thread in self._threads:
                    thread.join()
                engine.resume()
            finally:
                self._stopping = False
        self._threads.clear()
        return self._wait(set(), 0.0)

    def _own(self, found: dict[int, Rollout]) -> dict[int, Rollout]:
        mine = {number: one for number, one in found.items() if number in self._mine}
        self._mine -= mine.keys()
        self.drawn += sum(len(one.ids) for one in mine.values())
        return mine


def _late(name: str, number: int, deadline_s: float) -> RolloutError:
    allowed = "a larger rl.deadline_s"
    text = f"{name}: a rollout of this round was not there in rl.deadline_s={deadline_s:g} seconds; use {allowed}"
    return RolloutError(text, where=name, value=number, allowed=allowed)
