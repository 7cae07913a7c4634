"""The embedded rollout engine: `trainer.engine` over the run's own modules, on the run's own ranks.

It holds no weights of its own: what training updates is what it answers with, so `load` only notes the version. An
asynchronous run needs an engine beside training, which keeps the weights that it was given.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from parallel.layout import Place
from parallel.world import World
from trainer.engine.engine import Engine
from trainer.engine.ranks import ALONE, Apart, Ranks, Together
from trainer.engine.request import Completion, Request
from trainer.engine.run import Direct, Run, ThroughModules
from trainer.model.decoder import Decoder
from trainer.model.exact.blocks import KEYS
from trainer.model.experts.held import held_weights
from trainer.rl.rollout.protocol import Rollout, RolloutError
from trainer.stages.forward import Forward

NAME = "embedded engine"
CHUNK = 8192  # the most tokens of a step


class Embedded:
    """Implements `RolloutEngine`; every call is collective over `world`.

    forward, stages: of this run on this rank. place: of this rank; ranks with different readers serve requests of their
    own, ranks with the same one are given the same requests. batch: the most requests of a rank at one time. longest:
    the most tokens of prompt and answer together.
    """

    def __init__(
        self,
        forward: Forward,
        stages: Sequence[Decoder],
        world: World,
        place: Place,
        *,
        batch: int,
        longest: int,
        version: int = 0,
    ) -> None:
        self.version, self.world, self.place, self.stages = version, world, place, stages
        apart = place.readers == world.size
        ranks: Ranks = ALONE if world.size == 1 else Apart(world) if apart else Together(world)
        run: Run = Direct(stages[0]) if world.size == 1 else ThroughModules(forward, stages)
        batch = batch if apart else batch * place.readers
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
        self._apart = apart

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """As of the protocol. Raises RolloutError after the deadline, and RequestError for what cannot be served."""
        mine, first = list(requests), 0
        if not self._apart:
            of_reader = dict(self.world.gather((self.place.reader, mine)))
            first = sum(len(of_reader[reader]) for reader in range(self.place.reader))
            mine = [one for reader in sorted(of_reader) for one in of_reader[reader]]
        with held_weights(block.moe.experts for stage in self.stages for block in stage.blocks):
            found = self._serve(mine, time.monotonic() + deadline_s, deadline_s)
        return [self._rollout(one) for one in found[first : first + len(requests)]]

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

    def _rollout(self, found: Completion) -> Rollout:
        versions = np.full(len(found.ids), self.version, np.int64)
        return Rollout(found.prompt, found.ids, found.log_probs, found.routes, versions, found.finish)
