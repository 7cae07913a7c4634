"""A rollout engine with weights of its own, beside those that train: `trainer.engine` over a directory's model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.request import Completion, Request, Token
from trainer.model.experts.base import QuantizedBackend
from trainer.rl.rollout.protocol import Rollout
from trainer.rl.servers.buckets import Bucket, load_into
from trainer.rl.servers.errors import IncompleteError, fault
from trainer.rl.workers.blank import Blank
from trainer.weights.hf_read import upright
from trainer.weights.hf_survey import SourceModel


class OwnEngine:
    """Implements `RolloutEngine` and `Receiver` in exact arithmetic, on one device.

    directory: a Hugging Face directory, whose weights are `version`, or a model that is sent its weights. A `pause` may
    come from another thread than `generate`. name: in errors. The rest as of `Engine`.
    """

    def __init__(
        self,
        directory: str | Path | Blank,
        *,
        version: int = 0,
        device: str = "cpu",
        cache_tokens: int = 32_768,
        batch: int = 64,
        chunk: int = 512,
        name: str = "own engine",
    ) -> None:
        self.name, self.version = name, version
        self._source: SourceModel | Blank
        if isinstance(directory, Blank):
            self._source, self._model = directory, directory.load(torch.device(device))
        else:
            source = open_source(Path(directory))
            if not isinstance(source.opened, SourceModel):
                raise fault(name, f"{directory} is not a Hugging Face directory", str(directory), "use an export")
            self._source, self._model = source.opened, source.load(torch.device(device))
        self._engine = Engine(self._model, cache_tokens=cache_tokens, batch=batch, chunk=chunk, version=version)
        self._pause, self._idle = threading.Event(), threading.Lock()
        self._taken: dict[str, Tensor] | None = None

    # ---- RolloutEngine ----

    def generate(self, requests: Sequence[Request], *, deadline_s: float) -> list[Rollout]:
        """Raises IncompleteError, with the answers that are there, after the deadline."""
        end = time.monotonic() + deadline_s
        with self._idle:
            if self._pause.is_set():
                return [self._rollout(one, [], None) for one in requests]
            numbers = [self._engine.submit(request) for request in requests]
            tokens: dict[int, list[Token]] = {number: [] for number in numbers}
            while self._engine.unfinished and not self._pause.is_set() and time.monotonic() < end:
                for token in self._engine.step():
                    tokens[token.number].append(token)
            done = {number: self._engine.result(number) for number in numbers if number in self._engine.done}
            for number in numbers:
                self._engine.cancel(number)
            found = {place: self._whole(done[number]) for place, number in enumerate(numbers) if number in done}
            if len(found) < len(requests) and not self._pause.is_set():
                first = next(place for place in range(len(requests)) if place not in found)
                text = f"{self.name}: request {first} of {len(requests)} has no answer after {deadline_s:g} s"
                remedy = "ask again with a longer deadline"
                raise IncompleteError(
                    f"{text}; {remedy}", where=self.name, value=first, allowed=remedy, finished=found
                )  # fmt: skip
            for place, number in enumerate(numbers):
                if place not in found:
                    found[place] = self._cut(requests[place], tokens[number])
        return [found[place] for place in range(len(requests))]

    def pause(self) -> None:
        self._pause.set()
        with self._idle:  # `generate` has returned what there is
            pass

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        load_into([self], weights, version, 1 << 62)

    def resume(self) -> None:
        self._pause.clear()

    def close(self) -> None:
        """Its memory is Python's to free."""

    # ---- Receiver: nothing changes before all tensors are there and fit ----

    def start_load(self) -> None:
        if not self._pause.is_set():
            raise fault(self.name, "weights change only while the engine is paused", "load", "call pause first")
        self._taken = {}

    def take(self, bucket: Bucket) -> None:
        assert self._taken is not None
        start = 0
        for name, shape in zip(bucket.names, bucket.shapes, strict=True):
            numel = torch.Size(shape).numel()
            self._taken[name] = bucket.flat[start : start + numel].view(shape)
            start += numel

    @torch.no_grad()
    def finish_load(self, version: int) -> None:
        taken, self._taken = self._taken or {}, None
        wanted = {self._source.stored_name(piece): piece.shape for piece in self._source.pieces}
        for name, shape in wanted.items():
            if name not in taken:
                raise fault(self.name, f"the weights of version {version} lack {name}", name, "load all of them")
            if tuple(taken[name].shape) != shape:
                raise fault(self.name, f"{name} has the shape {tuple(taken[name].shape)}", name, f"use {shape}")
        if unknown := taken.keys() - wanted.keys():
            raise fault(self.name, f"{min(unknown)} is not a tensor of this model", min(unknown), "leave it out")
        state = self._model.state_dict(keep_vars=True)
        for piece in self._source.pieces:
            stored = taken[self._source.stored_name(piece)][piece.stored_box(piece.box)]
            state[piece.parameter].data[piece.box] = upright(stored, piece).to(state[piece.parameter])
        for block in self._model.blocks:
            if isinstance(backend := block.moe.experts.backend, QuantizedBackend):
                backend.hold_weights(False)
                backend.hold_weights(True)  # quantised once for a version
        self.version = version
        self._engine.use_version(version)

    # ---- rollouts ----

    def _whole(self, done: Completion) -> Rollout:
        versions = np.full(len(done.ids), self.version, np.int64)
        return Rollout(done.prompt, done.ids, done.log_probs, done.routes, versions, done.finish)

    def _cut(self, request: Request, tokens: Sequence[Token]) -> Rollout:
        """A rollout that a pause cut short. Its routes are those of its tokens in one more pass, bit for bit the same
        in exact arithmetic."""
        if not tokens:
            return self._rollout(request, tokens, None)
        ids = [*request.prompt, *(token.id for token in tokens)]
        (again,) = self._engine.generate([Request(ids, 0, score_prompt=True)])
        return self._rollout(request, tokens, again)

    def _rollout(self, request: Request, tokens: Sequence[Token], again: Completion | None) -> Rollout:
        count = len(tokens)
        routes = None if again is None else again.routes[: len(request.prompt) + count - 1]
        log_probs = np.array([token.log_prob for token in tokens], np.float32)
        versions = np.full(count, self.version, np.int64)
        return Rollout(tuple(request.prompt), tuple(token.id for token in tokens), log_probs, routes, versions, "abort")
