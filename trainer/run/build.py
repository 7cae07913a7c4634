"""Build the parts of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from parallel.mesh import Meshes
from parallel.world import World
from trainer.config.keys import Config
from trainer.data.build import build_data
from trainer.data.protocols import Data
from trainer.kernels.choose import make_ops
from trainer.model.decoder import Decoder
from trainer.model.experts.choose import choose_backend
from trainer.objectives.base import Objective
from trainer.objectives.choose import build_objective, freeze_unused
from trainer.optim.build import build_engine
from trainer.optim.engine import Engine
from trainer.parallelize import build_meshes, parallelize
from trainer.precision import DTYPES, narrow_moments
from trainer.run.directory import RunDir
from trainer.weights.kept_source import keep_corpus_tokenizer, open_published

Fill = Callable[[Decoder], None]


@dataclass
class Parts:
    """The parts of a run on this rank.

    warnings: what the run passes over, found on any rank, one line each: unknown keys of published weights, damage of
    the data. meshes: None for a process on its own. stages: this rank's pipeline stages, in order; one today.
    """

    data: Data
    warnings: list[str]
    meshes: Meshes | None
    objective: Objective
    stages: list[Decoder]
    engine: Engine

    @property
    def model(self) -> Decoder:
        """The only stage, which the step, the evaluation and the sample texts run whole."""
        (model,) = self.stages
        return model


def build(cfg: Config, run: RunDir, world: World) -> Parts:
    """Collective over all ranks. Raises `ConfigError`, `DataError`, `WorldError` and `HuggingFaceError`."""
    fill, warnings = _choose_weights(cfg, run, world)
    data, faults = _open_data(cfg, run, world)
    if data.tokenizer is not None:
        keep_corpus_tokenizer(data.tokenizer, run.path, world)
    objective, meshes = build_objective(cfg.train), build_meshes(cfg, world.device.type)
    stages = [build_model(cfg, world, meshes, objective, fill)]
    return Parts(data, [*warnings, *faults], meshes, objective, stages, _prepare_engine(cfg, world, meshes, stages))


def build_model(
    cfg: Config, world: World, meshes: Meshes | None, objective: Objective, fill: Fill | None = None
) -> Decoder:
    """The model of `cfg` on this rank's device, spread over the meshes. Seeds torch's generators.

    objective: parameters that it does not use are frozen. fill: gives the model its weights; None draws random ones
    from `train.seed`.
    """
    world.watch.at("start: model")
    torch.manual_seed(cfg.train.seed)
    ops = make_ops(cfg.train.kernels)
    make_backend = choose_backend(cfg.precision.experts, cfg.model.expert_backend, ops)
    with torch.device("meta"):
        model = Decoder(cfg.model, DTYPES[cfg.precision.linears], ops, make_backend)
    freeze_unused(model, objective)
    parallelize(model, meshes, cfg, world.device.type)
    model.to_empty(device=world.device)
    if fill is not None:
        fill(model)
    else:
        model.init_weights(cfg.train.seed)
    world.broadcast_module(model)
    return model


def _choose_weights(cfg: Config, run: RunDir, world: World) -> tuple[Fill | None, list[str]]:
    """Open the published weights that a new run starts from; None for a resumed run and for random weights. Also
    returns warnings about them.

    Filling a model from them also copies the parts that are not trained to the run directory.
    """
    published = open_published(cfg, world) if run.step == 0 else None
    if published is None:
        return None, []

    def fill(model: Decoder) -> None:
        published.keep_untrained_parts(run.path)
        published.fill(model)

    return fill, published.source.warnings


def _open_data(cfg: Config, run: RunDir, world: World) -> tuple[Data, list[str]]:
    world.watch.at("start: data")
    found: list[str] = []
    new = run.step == 0 and cfg.checkpoint.init_from is not None
    data = build_data(
        cfg.data,
        seed=cfg.train.seed,
        vocab_size=cfg.model.vocab_size,
        samples=cfg.train.steps * cfg.train.global_batch,
        weights=Path(str(cfg.checkpoint.init_from)) if new else None,
        warn=found.append,
    )
    faults = sorted({line for of_rank in world.gather(found) for line in of_rank})
    world.agree("corpus", data.fingerprint)
    return data, faults


def _prepare_engine(cfg: Config, world: World, meshes: Meshes | None, stages: list[Decoder]) -> Engine:
    shard_group = meshes.shard_group if meshes else None
    (model,) = stages  # an engine has one optimizer over one model
    engine = build_engine(model, cfg.optim, world, shard_group, narrow_moments(cfg.precision))
    engine.prepare()
    world.extend_timeouts()  # all process groups exist by now
    return engine
