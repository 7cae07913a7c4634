"""Ranks that train on the same rollouts, because they share sequences or are stages of one pipeline.

The first of them leads: it asks the questions and rewards the answers, for a judge or a tool may answer another rank
differently. The others take part in what is collective, and get what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from parallel.errors import UserError
from parallel.world import World
from trainer.engine.request import Request
from trainer.rl.rollout.protocol import Rollout, RolloutEngine

T = TypeVar("T")


class Led:
    """Implements `RolloutEngine` for what runs inside `lead`, on leading ranks alone.

    engine: its calls are collective over `world`, all ranks of the run, and it takes the same requests from the ranks
    of `same`: those that train on the same rollouts, this one among them. failed: True after an error of `work` that
    all ranks of the run know of.
    """

    def __init__(self, engine: RolloutEngine, world: World, same: World) -> None:
        self.engine, self.world, self.same = engine, world, same
        self.failed = self._collective = False
        self._calls: dict[str, Callable[[Any], Any]] = {}
        self.register("generate", self._generate)

    @property
    def leads(self) -> bool:
        """Return True on the ranks that do the work."""
        return self.same.rank == 0

    def register(self, name: str, call: Callable[[Any], Any]) -> None:
        """A call with one value that is collective over `world`, for `together`."""
        self._calls[name] = call

    def lead(self, work: Callable[[], T]) -> T:
        """Return on all ranks of `same` what `work` returned on the first. Collective over all ranks of the run.

        work: may call `generate`, `gather` and `together`, equally often on all leading ranks of the run. A UserError
        that it raises between these calls is raised on all ranks of `same`."""
        if self.leads:
            try:
                found = work()
            except UserError as error:
                if not self._collective:
                    self._fail()
                    self.same.broadcast(("failed", error))
                raise
            self.same.broadcast(("done", found))
            return found
        while True:
            call, given = self.same.broadcast(cast("tuple[str, Any]", ("", None)))
            if call == "done":
                return cast(T, given)
            if call == "failed":
                self._fail()
                raise given
            if call == "gather":
                self.world.gather((False, None))
            else:
                self._calls[call](given)

    def together(self, name: str, given: Any) -> Any:
        """Return what a registered call returns here; all ranks of `same` make it with the same value (picklable)."""
        self.same.broadcast((name, given))
        self._collective = True
        found = self._calls[name](given)
        self._collective = False
        return found

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        found: list[Rollout] = self.together("generate", (list(requests), deadline_s))
        return found

    def gather(self, value: T) -> list[T]:
        """The values (picklable) of all leading ranks, in the order of the ranks; on leading ranks."""
        self.same.broadcast(("gather", None))
        every = self.world.gather((True, value))
        return [found for leads, found in every if leads]

    @property
    def version(self) -> int:
        return self.engine.version

    def pause(self) -> None:
        self.engine.pause()

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.engine.load(weights, version)

    def resume(self) -> None:
        self.engine.resume()

    def close(self) -> None:
        self.engine.close()

    def _generate(self, given: tuple[list[Request], float]) -> list[Rollout]:
        requests, deadline_s = given
        return self.engine.generate(requests, deadline_s=deadline_s)

    def _fail(self) -> None:
        self.failed = self.same.size == self.world.size
