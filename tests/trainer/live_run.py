"""A step of a real run whose live bytes are counted, for tests and benchmarks."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parallel.memory import kept
from parallel.memory.live import LiveBytes, Peak
from parallel.world import World, start_world
from trainer.config.keys import Config
from trainer.data.build import build_data
from trainer.model.experts.simulated import favoured_logits
from trainer.model.ops import Ops
from trainer.objectives.choose import build_objective
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes
from trainer.run.build import build_model
from trainer.run.simulate import trace_step

SMALL = 256  # bytes that are worth a copy in models of a test's size


class Favouring(Ops):
    """Adds to the logits, as `favoured_logits` does, before experts are selected."""

    def __init__(self, router: str) -> None:
        self.router = router

    def route(self, logits: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.router != "uniform":
            logits = logits + favoured_logits(logits.shape[1], self.router)
        return super().route(logits, *args, **kwargs)


def live_step(cfg: Config, router: str = "uniform") -> tuple[Peak, Tensor]:
    """The peak of this rank's second step, and its weights after it; in one process or as a rank of several."""
    kept.LEAST = SMALL
    world = start_world("cpu", 60.0) if "RANK" in os.environ else World()
    data = build_data(cfg.data, seed=0, vocab_size=cfg.model.vocab_size)
    meshes, objective = build_meshes(cfg, "cpu"), build_objective(cfg.train)
    model = build_model(cfg, world, meshes, objective)
    for layer in model.blocks:
        layer.moe.router.ops = Favouring(router)
    engine = NativeEngine(model, cfg.optim, world, meshes and meshes.shard_group)
    engine.prepare()
    count, size = cfg.train.global_batch // (cfg.train.micro_batch * world.size), cfg.train.micro_batch
    for _ in range(2):  # the first step allocates what FSDP keeps, and compares numbers of tokens
        batches = [data.stream.batch((number * world.size + world.rank) * size, size) for number in range(count)]
        bounds = torch.arange(0, (size + 1) * cfg.data.seq_len, cfg.data.seq_len, dtype=torch.int32)
        batches = [replace(batch, cu_seqlens=bounds) for batch in batches]  # one document each, as in the simulation
        live = LiveBytes()
        trace_step([model], engine, objective, batches, cfg, world, meshes, live=live)
    world.close()
    weights = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return live.peak(), torch.cat([weight.detach().flatten() for weight in weights])
