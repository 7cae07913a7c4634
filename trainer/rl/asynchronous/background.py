"""Engines whose requests stay under way between rounds: the embedded one, and one beside training."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from trainer.engine.request import Request
from trainer.rl.asynchronous.under_way import AnyUnderWay, Outcome
from trainer.rl.rollout.embedded import NAME, Embedded
from trainer.rl.rollout.led import Led
from trainer.rl.rollout.protocol import Rollout, RolloutEngine, RolloutError
from trainer.rl.servers.remote import Remote


class Background(Protocol):
    """Rollouts have numbers, as of `UnderWay`, which differ over all ranks but those that train on the same. `start`
    and `collect` are called inside of `Led.lead`, the other calls on all ranks; all are collective.

    name: of the engine, in errors. overlaps: it draws while training computes. drawn: tokens of this rank's rollouts so
    far, as far as it is known.
    """

    name: str
    overlaps: bool
    drawn: int

    def start(self, numbers: Sequence[int]) -> None:
        """Draw what this rank's rollouts lack, but for those that are under way."""
        ...

    def collect(self, numbers: Sequence[int], deadline_s: float) -> dict[int, Outcome]:
        """Wait until these rollouts of this rank are done, and forget them. Raises RolloutError after deadline_s
        seconds."""
        ...

    def stop(self) -> None:
        """End all requests; what they have is kept."""
        ...

    def held(self) -> dict[int, Rollout]:
        """Rollouts that have tokens and are not collected; behind `stop`, on the rank that asks for them or on all."""
        ...

    def store(self, held: Mapping[int, Rollout]) -> None:
        """Continue with this rank's part of what was held."""
        ...

    def counts(self) -> dict[str, float]:
        """Numbers for the record since the last call, which may be summed over ranks."""
        ...


class Within:
    """Implements `Background` with the embedded engine, which draws while it is waited for. A token of every request
    is drawn in a step of it, so that what there is does not depend on the number of ranks, as long as their requests
    are not more than `rl.concurrent`."""

    name, overlaps = NAME, False

    def __init__(self, engine: Embedded, led: Led, under_way: AnyUnderWay) -> None:
        self.engine, self.led, self.under_way, self.drawn = engine, led, under_way, 0
        led.register("start", engine.start)
        led.register("draw", lambda given: engine.draw(*given))

    def start(self, numbers: Sequence[int]) -> None:
        self.led.together("start", self.under_way.open(numbers))

    def collect(self, numbers: Sequence[int], deadline_s: float) -> dict[int, Outcome]:
        end = time.monotonic() + deadline_s
        while any(self.led.gather(bool(left := [*filter(self.under_way.waits, numbers)]))):
            found, tokens, late = self.led.together("draw", (left, end))
            self.drawn += tokens
            if late is not None:
                raise _late(NAME, late // self.under_way.size, deadline_s)
            if more := self.under_way.add(found):
                self.led.together("start", more)
        return self.under_way.finish(numbers)

    def stop(self) -> None:
        found = self.engine.interrupt()
        if self.led.leads:
            self.under_way.add(found)
        self.under_way.stop()

    def held(self) -> dict[int, Rollout]:
        return self.under_way.held()

    def store(self, held: Mapping[int, Rollout]) -> None:
        if self.led.leads:
            self.under_way.store(held)

    def counts(self) -> dict[str, float]:
        return self.under_way.counts()


class Beside:
    """Implements `Background` with an engine that answers beside training. Rank 0 has the rollouts of all ranks, and a
    thread for those of each question, which asks for their turns without a deadline; at most `concurrent` requests are
    asked at a time. name: in errors."""

    overlaps = True

    def __init__(self, remote: Remote, led: Led, under_way: AnyUnderWay, name: str, *, concurrent: int) -> None:
        self.remote, self.led, self.under_way, self.name = remote, led, under_way, name
        self.drawn = 0
        self._gate = threading.BoundedSemaphore(max(1, concurrent // under_way.size))
        self._changed = threading.Condition()
        self._failed: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = False
        led.register("start", lambda every: self.remote.on_first(lambda: self._launch(every)))
        led.register("wait", lambda given: self.remote.on_first(lambda: self._wait(*given)))

    def start(self, numbers: Sequence[int]) -> None:
        every = [number for of_rank in self.led.gather(numbers) for number in of_rank]
        self.led.together("start", every)

    def _launch(self, numbers: Sequence[int]) -> None:
        requests, size, engine = self.under_way.open(numbers), self.under_way.size, self.remote.engine
        assert engine is not None
        groups: dict[int, dict[int, Request]] = {}
        for number, request in requests.items():
            groups.setdefault(number // size, {})[number] = request
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for question, group in groups.items():
            name = f"rollouts of question {question}"
            thread = threading.Thread(target=self._ask, args=(engine, group), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _ask(self, engine: RolloutEngine, group: dict[int, Request]) -> None:
        try:
            with self._gate:
                while group and not self._stopping:
                    found = engine.generate([*group.values()], deadline_s=math.inf)
                    answers = dict(zip(group, found, strict=True))
                    group = self.under_way.add(answers)
                    with self._changed:
                        self.drawn += sum(len(one.ids) for one in found)
                        self._changed.notify_all()
        except BaseException as error:  # for `collect`, on the thread that trains
            with self._changed:
                self._failed = self._failed or error
                self._changed.notify_all()

    def collect(self, numbers: Sequence[int], deadline_s: float) -> dict[int, Outcome]:
        every = sorted(number for of_rank in self.led.gather(numbers) for number in of_rank)
        found: dict[int, Outcome] = self.led.together("wait", (every, deadline_s))
        return {number: found[number] for number in numbers}

    def _wait(self, numbers: Collection[int], deadline_s: float) -> dict[int, Outcome]:
        def ready() -> bool:
            return self._failed is not None or not any(map(self.under_way.waits, numbers))

        with self._changed:
            there = self._changed.wait_for(ready, timeout=deadline_s)
            if self._failed is not None:
                raise self._failed
            late = [] if there else [*filter(self.under_way.waits, numbers)]  # none: a thread was done at the deadline
            if late:
                raise _late(self.name, late[0] // self.under_way.size, deadline_s)
        return self.under_way.finish([*numbers])

    def stop(self) -> None:
        self.remote.on_first(self._end)

    def _end(self) -> None:
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
        if self._failed is not None:
            raise self._failed
        self.under_way.stop()

    def held(self) -> dict[int, Rollout]:
        return self.remote.on_first(self.under_way.held)

    def store(self, held: Mapping[int, Rollout]) -> None:
        for of_rank in self.remote.world.gather(held if self.led.leads else {}):
            self.under_way.store(of_rank)

    def counts(self) -> dict[str, float]:
        return self.under_way.counts() if self.remote.engine is not None else {}


def _late(name: str, question: int, deadline_s: float) -> RolloutError:
    allowed = "a larger rl.deadline_s"
    late = f"did not arrive within rl.deadline_s={deadline_s:g} seconds"
    text = f"{name}: a rollout of question {question} {late}; use {allowed}"
    return RolloutError(text, where=name, value=question, allowed=allowed)
