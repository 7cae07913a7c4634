"""Simulate one rank of any layout: the bytes it holds and the collectives of its step.

Weights have sizes and no memory, collectives have groups and no peers; `parallelize`, the engine and the step are those
of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.layout import Layout, Place
from parallel.memory.known_rows import KnownAllToAll, rows_of_experts
from parallel.memory.live import HOST, LiveBytes, Peak
from parallel.mesh import Meshes
from parallel.pipeline.cut import StageCut
from parallel.pipeline.private import unavailable
from parallel.simulate import (
    Collective,
    CollectiveLog,
    GroupedShapes,
    RankBytes,
    Traffic,
    fake_world,
    rank_bytes,
    repeat_second,
)
from parallel.torch_private import FakeTensorMode, gathered_weights
from parallel.world import World
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.config.ranks import cut_model, map_ranks, most_windows
from trainer.data.batch import Batch
from trainer.data.media.placed import placed
from trainer.data.media.synthetic import blank_media
from trainer.model.decoder import Decoder
from trainer.model.dual_encoder import make_decoder
from trainer.model.experts.held import held_weights
from trainer.model.experts.simulated import assume_rows, choose_simulated, simulate_adapters
from trainer.model.experts.te.shapes import TransformerEngineShapes
from trainer.model.frozen.hold import held, hold_base
from trainer.model.lora.adapt import adapt, rates
from trainer.objectives.base import Objective
from trainer.objectives.choose import build_objective, freeze_unused
from trainer.objectives.policy import Policy
from trainer.optim.engine import Engine
from trainer.optim.native import NativeEngine
from trainer.optim.parts import freeze_parts
from trainer.parallelize import build_meshes, parallelize, share_of
from trainer.precision import DTYPES, narrow_moments
from trainer.rl.routes import padding_routes
from trainer.run.build import build_pipeline, ranks_alike, stage_spans
from trainer.run.step import Between, accumulate_gradients, count_step
from trainer.stages.pipeline import Pipeline

MOST_LAYERS = 1000  # a few minutes
OBJECTIVES = ("next_token", "policy")
STEADY = 3  # micro-batches without a pipeline: the first, the last, and one as all others are


@dataclass(frozen=True)
class SimulatedRank:
    """One rank of a layout.

    memory: bytes held after backward, gradients included. collectives: of one optimizer step, in the order of their
    issue. live: every tensor of the step. stages: this rank's, by number. ran: micro-batches that were run, as many as
    reach the steady state; micro_batches: of a real step. Without a pipeline `collectives` has those of all, with one
    only of those that ran: every other micro-batch is like the last one.
    """

    layout: Layout
    memory: RankBytes
    collectives: list[Collective]
    live: LiveBytes
    stages: dict[int, StageCut]
    ran: int
    micro_batches: int

    @property
    def peak(self) -> Peak:
        return self.live.peak()

    @property
    def traffic(self) -> Traffic:
        """The bytes that a pipeline's rank sends."""
        return Traffic.of(self.collectives, self.ran)


def simulate_rank(cfg: Config, world_size: int, rank: int, router: str = "uniform") -> SimulatedRank:
    """Build `rank` of `world_size` and take it through one step, without memory or peers.

    The experts' kernels are those of a CPU where `train.device=cpu`, otherwise those of a GPU. Nothing is compiled; a
    compiled model has the same weights and fewer temporary tensors. The step's micro-batches are windows of one
    document each, for which a ring of attention sends the most; in reinforcement learning there are as many as if no
    two rollouts shared a window, with routes where they are used. With towers each has an image of up to 1,024 patches,
    or a tile, and a signal of up to 256 tokens. router: a key of `ROUTERS`, on which numbers of rows depend where
    tokens travel by all_to_all.

    Raises `ConfigError` for objectives and engines whose sizes depend on other ranks, for models of too many layers,
    and for pipelines that this torch cannot run.
    """
    if cfg.optim.engine != "native":
        raise ConfigError(
            f"optim.engine={cfg.optim.engine} cannot be built without its ranks; use native",
            where="optim.engine",
            value=cfg.optim.engine,
            allowed=("native",),
        )
    if cfg.train.objective not in OBJECTIVES:
        raise ConfigError(
            f"train.objective={cfg.train.objective} has steps whose sizes depend on the data; use next_token, whose "
            "weights are the same",
            where="train.objective",
            value=cfg.train.objective,
            allowed=OBJECTIVES,
        )
    if cfg.model.num_layers > MOST_LAYERS:
        raise ConfigError(
            f"model.num_layers={cfg.model.num_layers}: every layer is built here; use {MOST_LAYERS} or less, or "
            "`octavo train --dry-run`, which only counts",
            where="model.num_layers",
            value=cfg.model.num_layers,
            allowed=f"{MOST_LAYERS} or less",
        )
    if cfg.parallel.pp > 1 and (fault := unavailable()) is not None:
        raise ConfigError([fault])
    kernels = cfg.train.kernels
    cfg = replace(cfg, train=replace(cfg.train, compile=False, kernels="torch"))
    with fake_world(world_size, rank) as fake:
        world = World(rank=rank, size=world_size, control=dist.new_group())
        meshes = build_meshes(cfg, world.device.type)
        assert meshes is not None  # there is a process group
        tokens = cfg.train.micro_batch * cfg.data.seq_len // meshes.layout.cp
        counts = assume_rows(cfg.model, tokens, meshes.placement.ep, router)
        mine = meshes.placement.experts(rank % meshes.placement.ep, cfg.model.num_experts)  # innermost ranks
        cpu, shares = cfg.train.device == "cpu", rows_of_experts(counts, mine)
        make_backend = choose_simulated(
            cfg.precision.experts, cfg.model.expert_backend, kernels, cpu=cpu, shares=shares
        )
        objective, place = build_objective(cfg.train, cfg.rl), meshes.layout.place(rank)
        plan = map_ranks(cfg.parallel, cfg.model, world_size).plan
        cuts, stages = cut_model(cfg, plan), {}
        for number in plan.of_rank(place.pp):
            with torch.device("meta"):
                stage = make_decoder(
                    cfg.model,
                    DTYPES[cfg.precision.linears],
                    make_backend=make_backend,
                    span=stage_spans(cfg, plan)[number],
                )
            freeze_unused(stage, objective)
            freeze_parts(stage, cfg.optim, routers=cfg.rl.freeze_router)
            adapt(stage, cfg.lora, DTYPES[cfg.precision.linears])
            hold_base(stage, cfg.lora, cfg.precision.experts)
            simulate_adapters(stage, cpu=cpu, shares=shares)
            parallelize(stage, meshes, cfg, world.device.type)
            for layer in stage.blocks:
                if isinstance(layer.moe.dispatcher, AllToAllDispatch):
                    layer.moe.dispatcher = KnownAllToAll(layer.moe.dispatcher.group, counts)
            stages[number] = stage
        alike, moments = ranks_alike(world, meshes), narrow_moments(cfg.precision)
        trained = {name: rate for stage in stages.values() for name, rate in rates(stage, cfg.lora).items()}
        engine = NativeEngine(
            list(stages.values()), cfg.optim, world, meshes.shard_group, moments, alike, trained or None
        )
        with fake:
            for stage in stages.values():
                stage.to_empty(device=world.device)
            engine.prepare()
        of_step = cfg.train.micro_batch * meshes.layout.readers
        micro_batches = most_windows(cfg) // of_step
        ran = plan.steady(micro_batches) if plan.ranks > 1 else min(micro_batches, STEADY)
        shorter = replace(cfg, train=replace(cfg.train, global_batch=ran * of_step))
        pipeline, forward = build_pipeline(shorter, plan, stages, objective, alike, meshes)
        if isinstance(objective, Policy):
            objective.share = forward.share
        live = LiveBytes()
        with GroupedShapes():
            memory, collectives = trace_step(
                list(stages.values()),
                engine,
                objective,
                [_blank_batch(cfg).part(share_of(meshes, cfg))] * ran,
                cfg,
                world,
                meshes,
                pipeline=pipeline,
                fake=fake,
                live=live,
            )
        if pipeline is None:
            collectives = repeat_second(collectives, micro_batches - ran)
        own = {number: cuts[number] for number in stages}
        return SimulatedRank(meshes.layout, memory, collectives, live, own, ran, micro_batches)


def trace_step(
    stages: Sequence[Decoder],
    engine: Engine,
    objective: Objective,
    batches: Sequence[Batch],
    cfg: Config,
    world: World,
    meshes: Meshes | None,
    *,
    pipeline: Pipeline | None = None,
    fake: FakeTensorMode | None = None,
    live: LiveBytes | None = None,
) -> tuple[RankBytes, list[Collective]]:
    """One step, in `fake` tensors or for real: bytes held after backward, and its collectives.

    stages: this rank's, which `pipeline` runs; without one the whole model. Collectives outside of autograd are marked
    "counts" (of tokens, on the host), "forward", "between" (the passes of a pipeline) and "optimizer". live: follows
    the tensors of the step; what lasts is labelled.
    """
    live = live or LiveBytes()
    log = CollectiveLog(_axes(meshes, world) if meshes is not None else ())
    place = meshes.layout.place(world.rank) if meshes is not None else Place()
    with log, log.section("counts"):
        units = count_step(objective, batches, world, place)["units"]
    parameters = [p for stage in stages for p in stage.parameters()]
    with fake or nullcontext(), log, live:
        live.label("weights", [*parameters, *(matrix.scaled.scales for stage in stages for matrix in held(stage))])
        live.label(HOST if cfg.optim.offload == "cpu" else "optimizer", engine.state().values())
        if pipeline is None:
            (model,) = stages
            with log.numbered(model):
                accumulate_gradients(
                    model,
                    engine,
                    objective,
                    batches,
                    units,
                    world,
                    step=1,
                    between=Between.of(cfg),
                )
        else:
            _accumulate(pipeline, stages, batches, units, log, live)
        memory = rank_bytes(parameters, engine.state().values())
        live.label("gradients", [p.grad for p in parameters if p.grad is not None])
        with log.section("optimizer"), live.section("optimizer"):
            engine.step(1, cfg.train.steps)
    return memory, log.calls


def _accumulate(
    pipeline: Pipeline,
    stages: Sequence[Decoder],
    batches: Sequence[Batch],
    units: int,
    log: CollectiveLog,
    live: LiveBytes,
) -> None:
    """A pipeline's forward and backward. Labels what lasts for the step when it is there, in the last micro-batch."""
    experts = [layer.moe.experts for stage in stages for layer in stage.blocks]

    @contextmanager
    def around(micro_batch: int) -> Iterator[None]:
        with log.running(micro_batch):
            yield
        live.pause()
        if micro_batch < len(batches) - 1:
            return
        gathered = [pair for stage in stages for pair in gathered_weights(stage)]
        live.label("gathered", [weight for weight, _ in gathered])
        live.label("gradients", [gradient for _, gradient in gathered if gradient is not None])
        live.label("gradients", [p.grad for stage in stages for p in stage.parameters() if p.grad is not None])
        for backend in (module.backend for module in experts):
            if isinstance(backend, TransformerEngineShapes):
                live.label("quantised", backend.held)

    for stage in pipeline.stages:
        stage.around = around
    with held_weights(experts), log.section("between"), live.section("between"):
        pipeline.accumulate(batches, units, step=1)


def _axes(meshes: Meshes, world: World) -> Iterator[tuple[str, dist.ProcessGroup]]:
    assert dist.group.WORLD is not None
    yield "world", dist.group.WORLD
    if world.control is not None:
        yield "control", world.control
    for mesh in (meshes.dense, meshes.expert_dp):
        for name in mesh.mesh_dim_names or ():
            yield name, mesh.get_group(name)
    for name, group in (
        ("ep", meshes.ep_group),
        ("cp", meshes.cp_group),
        ("pp", meshes.pp_group),
        ("stage", meshes.stage_group if meshes.layout.pp > 1 else None),
        ("stage_control", meshes.stage_control),
        ("towers", meshes.tower_group),
    ):
        if group is not None:
            yield name, group


def _blank_batch(cfg: Config) -> Batch:
    rows, length = cfg.train.micro_batch, cfg.data.seq_len
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    media = blank_media(cfg.model, tokens)
    inputs, extra = {"ids": tokens, "positions": torch.arange(length).expand(rows, -1)}, {}
    if cfg.train.objective == "policy":
        extra = {name: torch.zeros(rows, length) for name in ("advantages", "rollout", "share")}
        extra["real"] = torch.ones(rows, length, dtype=torch.bool)
        if cfg.rl.replay != "off":
            routes = torch.from_numpy(padding_routes(rows * length, cfg.model))
            inputs["expert_ids"] = routes.unflatten(0, (rows, length))
    batch = Batch(
        inputs=inputs,
        labels=tokens,
        cu_seqlens=torch.arange(0, (rows + 1) * length, length, dtype=torch.int32),
        num_tokens=tokens.numel(),
        samples=list(range(rows)),
        media=media,
        extra=extra,
    )
    return placed(batch, cfg.model)
