"""Simulate one rank of any layout: the bytes it holds and the collectives of its step.

Weights have sizes and no memory, collectives have groups and no peers; `parallelize`, the engine and the step are those
of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.layout import Layout
from parallel.memory.known_rows import KnownAllToAll, rows_of_experts
from parallel.memory.live import HOST, LiveBytes, Peak
from parallel.mesh import Meshes
from parallel.simulate import Collective, CollectiveLog, GroupedShapes, RankBytes, fake_world, rank_bytes
from parallel.torch_private import FakeTensorMode
from parallel.world import World
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.data.batch import Batch
from trainer.model.decoder import Decoder
from trainer.model.experts.simulated import assume_rows, choose_simulated
from trainer.objectives.base import Objective
from trainer.objectives.choose import build_objective, freeze_unused
from trainer.optim.engine import Engine
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes, parallelize, share_of
from trainer.precision import DTYPES, narrow_moments
from trainer.run.step import accumulate_gradients, count_step

MOST_LAYERS = 1000  # a few minutes


@dataclass(frozen=True)
class SimulatedRank:
    """One rank of a layout.

    memory: bytes held after backward, gradients included. collectives: of one optimizer step, in the order of their
    issue. live: every tensor of the step.
    """

    layout: Layout
    memory: RankBytes
    collectives: list[Collective]
    live: LiveBytes

    @property
    def peak(self) -> Peak:
        return self.live.peak()


def simulate_rank(cfg: Config, world_size: int, rank: int, router: str = "uniform") -> SimulatedRank:
    """Build `rank` of `world_size` and take it through one step, without memory or peers.

    The experts' kernels are those of a CPU where `train.device=cpu`, otherwise those of a GPU. Nothing is compiled; a
    compiled model has the same weights and fewer temporary tensors. The step's micro-batches are windows of one
    document each, for which a ring of attention sends the most. router: a key of `ROUTERS`, on which numbers of rows
    depend where tokens travel by all_to_all.

    Raises `ConfigError` for objectives and engines whose sizes depend on other ranks, and for models of too many
    layers.
    """
    if cfg.optim.engine != "native":
        raise ConfigError(
            f"optim.engine={cfg.optim.engine} cannot be built without its ranks; use native",
            where="optim.engine",
            value=cfg.optim.engine,
            allowed=("native",),
        )
    if cfg.train.objective != "next_token":
        raise ConfigError(
            f"train.objective={cfg.train.objective} has steps whose sizes depend on the data; use next_token, whose "
            "weights are the same",
            where="train.objective",
            value=cfg.train.objective,
            allowed=("next_token",),
        )
    if cfg.model.num_layers > MOST_LAYERS:
        raise ConfigError(
            f"model.num_layers={cfg.model.num_layers}: every layer is built here; use {MOST_LAYERS} or less, or "
            "`octavo train --dry-run`, which only counts",
            where="model.num_layers",
            value=cfg.model.num_layers,
            allowed=f"{MOST_LAYERS} or less",
        )
    kernels = cfg.train.kernels
    cfg = replace(cfg, train=replace(cfg.train, compile=False, kernels="torch"))
    with fake_world(world_size, rank) as fake:
        world = World(rank=rank, size=world_size, control=dist.new_group())
        meshes = build_meshes(cfg, world.device.type)
        assert meshes is not None  # there is a process group
        tokens = cfg.train.micro_batch * cfg.data.seq_len // meshes.layout.cp
        counts = assume_rows(cfg.model, tokens, meshes.placement.ep, router)
        mine = meshes.placement.experts(rank % meshes.placement.ep, cfg.model.num_experts)  # innermost ranks
        make_backend = choose_simulated(
            cfg.precision.experts,
            cfg.model.expert_backend,
            kernels,
            cpu=cfg.train.device == "cpu",
            shares=rows_of_experts(counts, mine),
        )
        with torch.device("meta"):
            model = Decoder(cfg.model, DTYPES[cfg.precision.linears], make_backend=make_backend)
        objective = build_objective(cfg.train)
        freeze_unused(model, objective)
        parallelize(model, meshes, cfg, world.device.type)
        for layer in model.blocks:
            if isinstance(layer.moe.dispatcher, AllToAllDispatch):
                layer.moe.dispatcher = KnownAllToAll(layer.moe.dispatcher.group, counts)
        engine = NativeEngine(model, cfg.optim, world, meshes.shard_group, narrow_moments(cfg.precision))
        with fake:
            model.to_empty(device=world.device)
            engine.prepare()
        micro_batches = cfg.train.global_batch // (cfg.train.micro_batch * meshes.layout.readers)
        batches = [_blank_batch(cfg).part(share_of(meshes, cfg))] * micro_batches
        live = LiveBytes()
        with GroupedShapes():
            memory, collectives = trace_step(
                model, engine, objective, batches, cfg, world, meshes, fake=fake, live=live
            )
        return SimulatedRank(meshes.layout, memory, collectives, live)


def trace_step(
    model: Decoder,
    engine: Engine,
    objective: Objective,
    batches: Sequence[Batch],
    cfg: Config,
    world: World,
    meshes: Meshes | None,
    *,
    fake: FakeTensorMode | None = None,
    live: LiveBytes | None = None,
) -> tuple[RankBytes, list[Collective]]:
    """One step, in `fake` tensors or for real: bytes held after backward, and its collectives.

    Collectives outside of autograd are marked "counts" (of tokens, on the host), "forward" and "optimizer". live:
    follows the tensors of the step; what lasts is labelled.
    """
    live = live or LiveBytes()
    log = CollectiveLog(_axes(meshes, world) if meshes is not None else ())
    with log, log.section("counts"):
        units = count_step(objective, batches, world)["units"]
    with fake or nullcontext(), log, live:
        live.label("weights", model.parameters())
        live.label(HOST if cfg.optim.offload == "cpu" else "optimizer", engine.state().values())
        accumulate_gradients(
            model,
            engine,
            objective,
            batches,
            units,
            world,
            step=1,
            reshard_experts=cfg.parallel.reshard_experts,
            reduce_once=cfg.parallel.reduce_every == "step",
        )
        memory = rank_bytes(model.parameters(), engine.state().values())
        live.label("gradients", [p.grad for p in model.parameters() if p.grad is not None])
        with log.section("optimizer"), live.section("optimizer"):
            engine.step(1, cfg.train.steps)
    return memory, log.calls


def _axes(meshes: Meshes, world: World) -> Iterator[tuple[str, dist.ProcessGroup]]:
    assert dist.group.WORLD is not None
    yield "world", dist.group.WORLD
    if world.control is not None:
        yield "control", world.control
    for mesh in (meshes.dense, meshes.expert_dp):
        for name in mesh.mesh_dim_names or ():
            yield name, mesh.get_group(name)
    if meshes.ep_group is not None:
        yield "ep", meshes.ep_group
    if meshes.cp_group is not None:
        yield "cp", meshes.cp_group


def _blank_batch(cfg: Config) -> Batch:
    rows, length = cfg.train.micro_batch, cfg.data.seq_len
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    return Batch(
        inputs={"ids": tokens, "positions": torch.arange(length).expand(rows, -1)},
        labels=tokens,
        cu_seqlens=torch.arange(0, (rows + 1) * length, length, dtype=torch.int32),
        num_tokens=tokens.numel(),
        samples=list(range(rows)),
    )
