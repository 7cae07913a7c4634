"""Build the parts of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from parallel.layout import Place
from parallel.mesh import Meshes
from parallel.pipeline.plan import Plan
from parallel.world import World
from trainer.config.keys import Config
from trainer.config.ranks import cut_model, map_ranks
from trainer.config.run_files import TOKENIZER_DIRECTORY
from trainer.data.build import build_data
from trainer.data.media.balance import Balance
from trainer.data.protocols import Data
from trainer.kernels.choose import make_ops
from trainer.model.decoder import Decoder, Span
from trainer.model.dual_encoder import make_decoder
from trainer.model.experts.choose import choose_backend
from trainer.model.frozen.hold import hold_base, spread_scales
from trainer.model.lora.adapt import adapt, init_adapters, rates
from trainer.objectives.base import Objective
from trainer.objectives.choose import build_objective, freeze_unused
from trainer.optim.build import build_engine
from trainer.optim.engine import Engine
from trainer.optim.parts import freeze_parts
from trainer.parallelize import build_meshes, parallelize, share_of
from trainer.precision import DTYPES, narrow_moments
from trainer.run.directory import RunDir
from trainer.stages.forward import Forward, Relayed, Whole
from trainer.stages.pipeline import Pipeline
from trainer.weights.kept_source import keep_corpus_tokenizer, keep_rules, open_published

Fill = Callable[[Decoder], None]


@dataclass
class Parts:
    """The parts of a run on this rank.

    warnings: what the run passes over, found on any rank, one line each: unknown keys of published weights, damage of
    the data. meshes: None for a process on its own. place: of this rank. alike: the ranks that hold the same stages.
    stages: this rank's pipeline stages by number, in order; pipeline: runs them in training, None where there is one
    stage, which is then the whole model. forward: runs the model outside of training. base: where adapters are trained,
    `identify` of the weights that they belong to.
    """

    data: Data
    warnings: list[str]
    meshes: Meshes | None
    place: Place
    alike: World
    objective: Objective
    stages: dict[int, Decoder]
    pipeline: Pipeline | None
    forward: Forward
    engine: Engine
    base: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> Decoder:
        """The whole model, for a run without a pipeline."""
        (model,) = self.stages.values()
        return model


def build(cfg: Config, run: RunDir, world: World) -> Parts:
    """Collective over all ranks. Raises `ConfigError`, `DataError`, `WorldError` and `HuggingFaceError`."""
    fill, warnings, base = _choose_weights(cfg, run, world)
    data, faults = _open_data(cfg, run, world)
    if data.tokenizer is not None:
        keep_corpus_tokenizer(data.tokenizer, run.path, world)
    if data.media:
        keep_rules(data.media, data.stream.shares, run.path, world)
    objective, meshes = build_objective(cfg.train, cfg.rl), build_meshes(cfg, world.device.type)
    alike, place = ranks_alike(world, meshes), meshes.layout.place(world.rank) if meshes else Place()
    plan, stages = build_stages(cfg, world, alike, meshes, place, objective, fill)
    pipeline, forward = build_pipeline(cfg, plan, stages, objective, alike, meshes)
    engine = _prepare_engine(cfg, world, alike, meshes, list(stages.values()))
    return Parts(data, [*warnings, *faults], meshes, place, alike, objective, stages, pipeline, forward, engine, base)


def ranks_alike(world: World, meshes: Meshes | None) -> World:
    """The ranks that hold the same pipeline stages as this one."""
    if meshes is None or meshes.layout.pp == 1:
        return world
    return world.within(meshes.stage_group, meshes.stage_control)


def build_stages(
    cfg: Config,
    world: World,
    alike: World,
    meshes: Meshes | None,
    place: Place,
    objective: Objective,
    fill: Fill | None = None,
) -> tuple[Plan, dict[int, Decoder]]:
    """The pipeline, and this rank's stages by number: the whole model where there is one. Arguments as `build_model`'s.
    Collective."""
    plan = map_ranks(cfg.parallel, cfg.model, world.size).plan
    if plan.stages == 1:
        return plan, {0: build_model(cfg, alike, meshes, objective, fill)}
    spans = stage_spans(cfg, plan)
    stages = {
        number: build_model(cfg, alike, meshes, objective, fill, spans[number]) for number in plan.of_rank(place.pp)
    }
    for stage in stages.values():
        for buffer in stage.rotary.buffers():  # every stage has its own copy of the position tables
            world.broadcast_tensor(buffer)
    return plan, stages


def stage_spans(cfg: Config, plan: Plan) -> list[Span]:
    """The part of the decoder of every stage."""
    last = plan.stages - 1
    return [Span(cut.start, cut.stop, number == 0, number == last) for number, cut in enumerate(cut_model(cfg, plan))]


def build_pipeline(
    cfg: Config, plan: Plan, stages: dict[int, Decoder], objective: Objective, alike: World, meshes: Meshes | None
) -> tuple[Pipeline | None, Forward]:
    """The runners of the stages, in training and outside of it."""
    if plan.stages == 1:
        (model,) = stages.values()
        return None, Whole(model, share_of(meshes, cfg), _balance(cfg, meshes, alike))
    assert meshes is not None
    assert meshes.pp_group is not None
    train, layout = cfg.train, meshes.layout
    pipeline = Pipeline(
        stages,
        plan,
        objective,
        alike=alike,
        group=meshes.pp_group,
        tokens=train.micro_batch * cfg.data.seq_len // layout.cp,
        micro_batches=plan.at_least(train.global_batch // (train.micro_batch * layout.readers)),
        recompute=train.recompute,
        reduce_each=cfg.parallel.reduce_every == "micro_batch",
    )
    balance = _balance(cfg, meshes, alike) if any(stage.span.embeds for stage in stages.values()) else None
    return pipeline, Relayed(stages, plan, meshes.pp_group, share_of(meshes, cfg), balance)


def _balance(cfg: Config, meshes: Meshes | None, alike: World) -> Balance | None:
    """The balance of the ranks with the vision tower; None where images stay on their ranks."""
    if meshes is None or meshes.tower_group is None:
        return None
    assert cfg.model.vision is not None
    return Balance(alike, cfg.model.vision)


def build_model(
    cfg: Config,
    world: World,
    meshes: Meshes | None,
    objective: Objective,
    fill: Fill | None = None,
    span: Span | None = None,
) -> Decoder:
    """The model of `cfg`, or the `span` of it that a pipeline stage has, on this rank's device and spread over the
    meshes. Collective over `world`, the ranks that build the same. Seeds torch's generators.

    objective: parameters that it does not use are frozen. fill: gives the model its weights; None draws random ones
    from `train.seed`.
    """
    world.watch.at("start: model")
    torch.manual_seed(cfg.train.seed)
    ops = make_ops(cfg.train.kernels)
    make_backend = choose_backend(cfg.precision.experts, cfg.model.expert_backend, ops, rounding=_rounding(cfg))
    with torch.device("meta"):
        model = make_decoder(cfg.model, DTYPES[cfg.precision.linears], ops, make_backend, span)
    freeze_unused(model, objective)
    freeze_parts(model, cfg.optim, routers=cfg.rl.freeze_router)
    adapt(model, cfg.lora, DTYPES[cfg.precision.linears])
    hold_base(model, cfg.lora, cfg.precision.experts)
    parallelize(model, meshes, cfg, world.device.type)
    # DeepSpeed's stage 3 takes weights from the host one by one, and gives every rank those of rank 0.
    partitioned = cfg.optim.engine == "deepspeed" and cfg.optim.zero_stage == 3
    model.to_empty(device="cpu" if partitioned else world.device)
    if fill is not None:
        fill(model)
    else:
        model.init_weights(cfg.train.seed)
    init_adapters(model, cfg.train.seed)
    if not partitioned:
        world.broadcast_module(model, own=spread_scales(model))
    if cfg.lora.dropout:
        # Ranks with other tokens drop other inputs, and so do stages.
        torch.manual_seed(cfg.train.seed + 1 + world.rank + world.size * (span.start if span else 0))
    return model


def _rounding(cfg: Config) -> torch.dtype | None:
    """The dtype that quantised experts round their weights to first, as a rollout engine receives them."""
    return torch.bfloat16 if cfg.train.objective == "policy" and cfg.rl.fp8_weights == "bf16" else None


def _choose_weights(cfg: Config, run: RunDir, world: World) -> tuple[Fill | None, list[str], dict[str, str]]:
    """Open the published weights that a new run, or any start with adapters, takes; None for other resumed runs and for
    random weights. Also returns warnings about them and, with adapters, `identify` of them.

    Filling a model from them also copies the parts that are not trained to the run directory.
    """
    # The checkpoints of a run with adapters do not hold the weights that these belong to.
    needed = run.step == 0 or cfg.lora.target != "none"
    published = open_published(cfg, world) if needed else None
    if published is None:
        return None, [], {}

    if run.step == 0:
        published.keep_untrained_parts(run.path, cfg.model)
    adapted = cfg.lora.target != "none"
    return published.fill, published.source.warnings, published.identify() if adapted else {}


def _open_data(cfg: Config, run: RunDir, world: World) -> tuple[Data, list[str]]:
    world.watch.at("start: data")
    found: list[str] = []
    new = run.step == 0 and cfg.checkpoint.init_from is not None
    data = build_data(
        cfg.data,
        seed=cfg.train.seed,
        vocab_size=cfg.model.vocab_size,
        samples=cfg.train.steps * cfg.train.global_batch,
        model=cfg.model,
        weights=Path(str(cfg.checkpoint.init_from)) if new else None,
        reduction=cfg.train.loss_reduction,
        kept=run.path / TOKENIZER_DIRECTORY,
        warn=found.append,
    )
    faults = sorted({line for of_rank in world.gather(found) for line in of_rank})
    world.agree("corpus", data.fingerprint)
    return data, faults


def _prepare_engine(cfg: Config, world: World, alike: World, meshes: Meshes | None, stages: list[Decoder]) -> Engine:
    shard_group = meshes.shard_group if meshes else None
    trained = {name: rate for stage in stages for name, rate in rates(stage, cfg.lora).items()}
    engine = build_engine(
        stages,
        cfg.optim,
        world,
        shard_group,
        narrow_moments(cfg.precision),
        alike,
        trained or None,
        cfg.rl.skip_grad_norm,
    )
    engine.prepare()
    world.extend_timeouts()  # all process groups exist by now
    return engine
