"""A rollout engine that one rank speaks to for all ranks of a run, and the weights that it is sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.errors import UserError
from parallel.layout import Place
from parallel.world import World
from trainer.config.model import ModelConfig
from trainer.engine.request import Request
from trainer.model.decoder import Decoder
from trainer.model.lora.adapt import adapters
from trainer.rl.rollout.protocol import Rollout, RolloutEngine
from trainer.rl.servers.buckets import Sync
from trainer.rl.servers.errors import RestartedError
from trainer.weights.hf_config import is_qwen3_moe
from trainer.weights.map import MULTIMODAL, PLAIN, Piece, full_name, text_pieces

T = TypeVar("T")
RELOADS = 3  # of an engine that is restarted again and again in one `generate`
_log = logging.getLogger(__name__)


ALONE = World()


def published(
    stages: Sequence[Decoder], cfg: ModelConfig, pipeline: World = ALONE, dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Tensor]]:
    """The text model's weights under published names, one at a time, in `dtype`, FoPE's tables in fp32.

    pipeline: its ranks, this one among them, have the stages of a model; `stages` are those of this rank. Collective
    over the ranks that hold parts of the weights: every rank has to read it to its end. A parameter is in memory whole
    while its tensors are read. Raises UserError for adapters.
    """
    if any(adapters(stage) for stage in stages):
        allowed = "rl.engine=embedded"
        text = f"adapters are not merged into weights for another rollout engine; use {allowed}"
        raise UserError(text, where="lora.rank", allowed=allowed)
    return _published(stages, cfg, pipeline, dtype)


def _published(
    stages: Sequence[Decoder], cfg: ModelConfig, pipeline: World, of_weights: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    prefix = PLAIN if is_qwen3_moe(cfg) else MULTIMODAL
    state = {name: weight for stage in stages for name, weight in stage.state_dict(keep_vars=True).items()}
    shapes = pipeline.gather({name: tuple(weight.shape) for name, weight in state.items()})
    of_parameter: dict[str, list[Piece]] = {}
    for piece in text_pieces(cfg):
        of_parameter.setdefault(piece.parameter, []).append(piece)
    for parameter, pieces in of_parameter.items():
        owner = next(rank for rank, of_rank in enumerate(shapes) if parameter in of_rank)
        dtype = torch.float32 if parameter.startswith("rotary.") else of_weights
        if owner == pipeline.rank:
            whole = _whole(state[parameter], dtype).contiguous()
        else:
            whole = torch.empty(shapes[owner][parameter], dtype=dtype, device=pipeline.device)
        if pipeline.size > 1:
            dist.broadcast(whole, group=pipeline.group, group_src=owner)
        for piece in pieces:
            values = whole[piece.box]
            for dimension in sorted(piece.dropped, reverse=True):
                values = values.squeeze(dimension)
            yield full_name(prefix, piece), values.mT if piece.transposed else values


@torch.no_grad()
def _whole(weight: Tensor, dtype: torch.dtype) -> Tensor:
    weight = weight.detach().to(dtype)
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


class Remote:
    """Implements `RolloutEngine` for a run: rank 0 asks `make()`'s engine for the requests of all ranks. Every call is
    collective over `world`, and an error of the engine is raised on every rank.

    stages, cfg: of the model whose weights are loaded; they are those of `version` whenever `generate` is called, which
    loads them again into an engine that was restarted. place: of this rank; ranks with the same reader give the same
    requests, which are asked once. pipeline, dtype: as of `published`.
    """

    def __init__(
        self,
        make: Callable[[], RolloutEngine],
        stages: Sequence[Decoder],
        cfg: ModelConfig,
        world: World,
        place: Place,
        pipeline: World = ALONE,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.stages, self.cfg, self.world, self.place, self.pipeline = stages, cfg, world, place, pipeline
        self.dtype = dtype
        self.engine: RolloutEngine | None = None
        self.last_sync: Sync | None = None
        self._counts: dict[str, float] = {}
        self.failed = False  # an error of the engine was raised, on every rank; the run ends

        def start() -> int:
            self.engine = make()
            return self.engine.version

        self.version: int = self.on_first(start)

    def on_first(self, work: Callable[[], T]) -> T:
        """The result of rank 0's work, on every rank; or its error."""
        found: T | UserError | None = None
        if self.world.rank == 0:
            try:
                with self.world.watch.ticking():
                    found = work()
            except UserError as error:
                found = error
        found = self.world.broadcast(found)
        if isinstance(found, UserError):
            self.failed = True
            raise found
        return found  # type: ignore[return-value]

    def _engine(self) -> RolloutEngine:
        assert self.engine is not None
        return self.engine

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        of_reader = dict(self.world.gather((self.place.reader, list(requests))))
        readers = sorted(of_reader)
        every = [one for reader in readers for one in of_reader[reader]]
        first = sum(len(of_reader[reader]) for reader in readers if reader < self.place.reader)
        found = self._ask(every, deadline_s)
        return found[first : first + len(requests)]

    def _ask(self, requests: list[Request], deadline_s: float) -> list[Rollout]:
        """The rollouts of all ranks' requests. An engine that was restarted gets the current weights and is asked for
        all of them again, at most RELOADS times and by the deadline."""
        end, reloads = time.monotonic() + deadline_s, 0
        while True:
            try:
                return self.on_first(
                    lambda: self._engine().generate(requests, deadline_s=max(0.0, end - time.monotonic()))
                )
            except RestartedError as error:  # on every rank
                if reloads == RELOADS:
                    raise
                if self.world.rank == 0:
                    _log.warning("%s; sending it version %d anew", error, self.version)
            reloads, self.failed = reloads + 1, False
            self.pause()
            self.load((), self.version)
            self.resume()

    def pause(self) -> None:
        self.on_first(lambda: self._engine().pause())

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """weights: empty; those of the run are sent."""
        stream = published(self.stages, self.cfg, self.pipeline, self.dtype)

        failure: UserError | None = None
        if self.world.rank == 0:
            try:
                self._engine().load(stream, version)
            except UserError as error:
                failure = error
        for _ in stream:  # the rest after a failure, and all of it on other ranks: gathering is collective
            pass
        self.last_sync = self.on_first(lambda: self._sync_of(failure))
        self.version = version

    def _sync_of(self, failure: UserError | None) -> Sync | None:
        """The engine's last sync, if it measures them. Raises what failed."""
        if failure is not None:
            raise failure
        return getattr(self._engine(), "last_sync", None)

    def counts(self) -> dict[str, float]:
        """Figures of the engine since the last call, on rank 0, if it counts."""
        now: Mapping[str, float] = getattr(self.engine, "counts", {})
        before, self._counts = self._counts, dict(now)
        return {name: value - before.get(name, 0) for name, value in self._counts.items()}

    def resume(self) -> None:
        self.on_first(lambda: self._engine().resume())

    def close(self) -> None:
        self.on_first(lambda: self._engine().close())
