"""The embedded rollout engine: `trainer.engine` over the run's own modules, on the run's own ranks.

It holds no weights of its own: what training updates is what it answers with, so `load` only notes the version. It
cannot draw while training computes; requests that are under way continue under the next weights.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import numpy.typing as npt
from torch import Tensor

from parallel.layout import Place
from parallel.world import World
from trainer.engine.engine import Engine
from trainer.engine.ranks import ALONE, Pipelines, Ranks
from trainer.engine.request import Completion, Request
from trainer.engine.run import Direct, Run, ThroughModules
from trainer.model.decoder import Decoder
from trainer.model.exact.blocks import KEYS
from trainer.model.exact.switch import compiled_for_few_rows
from trainer.model.experts.held import held_weights
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.stages.forward import Forward

Routes = npt.NDArray[np.uint16]

NAME = "embedded engine"
CHUNK = 8192  # the most tokens of a step


def layers_of(stages: Iterable[Decoder]) -> list[int]:
    """Numbers in the whole model of the layers of stages, in their order."""
    return [layer for stage in stages for layer in range(stage.span.start, stage.span.stop)]


class Embedded:
    """Implements `RolloutEngine`; every call is collective over `world`.

    forward, stages: of this run on this rank. place: of this rank. same, pipeline: as of `ranks_of_samples`; the ranks
    of `same` are given the same requests, and each pipeline among them serves a part of these. batch: the most requests
    of a pipeline at one time. longest: the most tokens of prompt and answer together.
    """

    def __init__(
        self,
        forward: Forward,
        stages: Sequence[Decoder],
        world: World,
        place: Place,
        same: World,
        pipeline: World,
        *,
        batch: int,
        longest: int,
        version: int = 0,
    ) -> None:
        self.version, self.world, self.place, self.stages = version, world, place, stages
        self.same, self.pipeline = same, pipeline
        ranks: Ranks = ALONE if world.size == 1 else Pipelines(world, pipeline)
        run: Run = Direct(stages[0]) if world.size == 1 else ThroughModules(forward, stages)
        pages = -(-longest // KEYS)
        self._engine = Engine(
            stages[0],
            cache_tokens=batch * pages * KEYS,
            batch=batch,
            chunk=max(batch, CHUNK),
            version=version,
            run=run,
            ranks=ranks,
        )
        self._numbers: dict[int, int] = {}  # of requests that `start` was given, by the engine's own

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """As of the protocol. Raises RolloutError after the deadline, and RequestError for what cannot be served."""
        parts = self.same.size // self.pipeline.size
        with self.serving():
            found = self._serve(requests[self.place.cp :: parts], time.monotonic() + deadline_s, deadline_s)
        rollouts = [
            self._rollout(one, routes) for one, routes in zip(found, self._routes_of_all_layers(found), strict=True)
        ]
        if parts == 1:
            return rollouts
        every: list[Rollout | None] = [None] * len(requests)
        for part, of_part in self.same.gather((self.place.cp, rollouts if self.place.pp == 0 else [])):
            if of_part:
                every[part::parts] = of_part
        return [one for one in every if one is not None]

    def pause(self) -> None:
        """Nothing runs between two calls of `generate`."""

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The run's weights are `version` now; `weights` is empty, as they are in place."""
        self.version = version
        self._engine.use_version(version)

    def resume(self) -> None:
        """Nothing was paused."""

    def close(self) -> None:
        """Everything is in memory."""

    # requests that stay under way, by numbers of the caller's; not at the same time as `generate`

    def serving(self) -> AbstractContextManager[object]:
        """A time in which the weights do not change."""
        stack = ExitStack()
        stack.enter_context(held_weights(block.moe.experts for stage in self.stages for block in stage.blocks))
        if self.world.size == 1:
            stack.enter_context(compiled_for_few_rows(self.stages[0]))
        return stack

    def start(self, requests: Mapping[int, Request]) -> None:
        """Start requests of the ranks of `same`, which all give them: each pipeline serves a part."""
        parts = self.same.size // self.pipeline.size
        mine = sorted(number for number in requests if number % parts == self.place.cp)
        self._numbers |= {self._engine.submit(requests[number]): number for number in mine}

    def draw(self, wanted: Collection[int], end: float) -> tuple[dict[int, Rollout], int, int | None]:
        """Draw a token of every request, as far as they fit, until a request of any rank is done.

        wanted: numbers that the ranks of `same` wait for, until `end` in seconds of `time.monotonic`. Returns on all
        ranks what is done of the requests of `same`, each once, how many tokens were drawn for it, and after `end`
        a number that some rank still waits for."""
        tokens, late = 0, None
        while True:
            tokens += len(self._engine.step())
            self.world.watch.tick()
            done = bool(self._engine.done)
            of_ranks = self.world.gather_count(min(wanted) + 2 if wanted and time.monotonic() > end else int(done))
            late = next((code - 2 for code in of_ranks if code > 1), None)
            if late is not None or any(of_ranks):
                break
        done_here = [*self._engine.done]
        found = self._named({at: self._engine.result(at) for at in done_here})
        if self.same.size == 1:
            return found, tokens, late
        first = self.place.pp == 0
        every = self.same.gather((found, tokens) if first else ({}, 0))
        return (
            {number: one for part, _ in every for number, one in part.items()},
            sum(count for _, count in every),
            late,
        )

    def interrupt(self) -> dict[int, Rollout]:
        """End all requests of the ranks of `same`: what they have by now, those that are not done as "abort"; those
        without a token are left out."""
        found = self._engine.interrupt()
        found |= {at: self._engine.result(at) for at in [*self._engine.done]}
        named = self._named(found)
        self._numbers.clear()
        if self.same.size == 1:
            return named
        every = self.same.gather(named if self.place.pp == 0 else {})
        return {number: one for part in every for number, one in part.items()}

    def _named(self, found: Mapping[int, Completion]) -> dict[int, Rollout]:
        """Rollouts by the caller's numbers, with the routes of all layers."""
        if not found:
            return {}
        order = sorted(found)
        routes = self._routes_of_all_layers([found[at] for at in order])
        return {
            self._numbers.pop(at): self._rollout(found[at], of_one) for at, of_one in zip(order, routes, strict=True)
        }

    def _serve(self, requests: Sequence[Request], end: float, deadline_s: float) -> list[Completion]:
        numbers = [self._engine.submit(request) for request in requests]
        while self._engine.advance():
            self.world.watch.tick()
            if time.monotonic() <= end:
                continue
            waiting = next(at for at, number in enumerate(numbers) if number not in self._engine.done)
            for number in numbers:
                self._engine.cancel(number)
            raise RolloutError(
                f"{NAME}: request {waiting} of {len(requests)} was not answered within rl.deadline_s={deadline_s:g} "
                "seconds; use a longer deadline, or fewer or shorter rollouts",
                where=NAME,
                value=waiting,
                allowed="a larger rl.deadline_s",
            )
        return [self._engine.result(number) for number in numbers]

    def _routes_of_all_layers(self, found: Sequence[Completion]) -> list[Routes]:
        """The routes of each answer, [tokens, L, K], from all ranks of the pipeline."""
        own = [one.routes for one in found]
        if self.pipeline.size == 1:
            return own
        every = self.pipeline.gather((layers_of(self.stages), own))
        order = np.argsort([layer for of_rank, _ in every for layer in of_rank])
        return [np.concatenate(parts, axis=1)[:, order] for parts in zip(*(routes for _, routes in every), strict=True)]

    def _rollout(self, found: Completion, routes: Routes) -> Rollout:
        versions = np.full(len(found.ids), self.version, np.int64)
        return Rollout(found.prompt, found.ids, found.log_probs, routes, versions, found.finish)
