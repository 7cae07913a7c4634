"""The rollout engine of a run, by `rl.engine`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch

from parallel.errors import UserError
from parallel.world import World
from trainer.config.keys import Config
from trainer.data.questions.asked import Questions
from trainer.model.exact.blocks import KEYS
from trainer.rl.rollout.embedded import CHUNK, NAME, Embedded
from trainer.rl.rollout.protocol import RolloutEngine
from trainer.rl.rollout.several import Several
from trainer.rl.servers.remote import Remote
from trainer.run.build import Parts


def build_engine(
    cfg: Config, world: World, parts: Parts, same: World, pipeline: World, *, rollouts: int, longest: int, version: int
) -> tuple[str, RolloutEngine]:
    """The engine and its name in errors; collective over all ranks.

    same, pipeline: as of `ranks_of_samples`. rollouts: of the ranks of `same` at one time. longest: the most tokens of
    prompt and answer together. version: of the run's weights. Raises UserError without the packages of a client,
    RolloutError for a server that cannot be used.
    """
    stages = [*parts.stages.values()]
    if cfg.rl.engine == "embedded":
        batch = min(cfg.rl.concurrent, -(-rollouts // (same.size // pipeline.size)))
        return NAME, Embedded(
            parts.forward, stages, world, parts.place, same, pipeline, batch=batch, longest=longest, version=version
        )  # fmt: skip
    # weights travel between stages by the group for tensors
    weights = world.within(parts.meshes.pp_group if parts.meshes else None, pipeline.control)
    if cfg.rl.engine == "ray":
        own = Remote(
            _ray_workers(cfg, rollouts * parts.place.readers, longest),
            stages,
            cfg.model,
            world,
            parts.place,
            weights,
            torch.float32 if cfg.rl.exact else torch.bfloat16,
        )
        return f"{cfg.rl.rollout_workers} Ray workers", own
    if find_spec("httpx") is None:
        remedy = "pip install -e '.[rl]'"
        text = f"rl.engine=lmdeploy needs httpx, which is not installed; {remedy}"
        raise UserError(text, where="rl.engine", value="lmdeploy", allowed=remedy)
    from trainer.rl.servers.http import address_of

    make = partial(_servers, cfg, cfg.rl.concurrent * parts.place.readers)
    name = f"LMDeploy at {', '.join(map(address_of, cfg.rl.urls))}"
    return name, Remote(make, stages, cfg.model, world, parts.place, weights)


def _servers(cfg: Config, concurrency: int) -> RolloutEngine:
    """The servers of `rl.url`. concurrency: requests to all of them side by side."""
    from trainer.rl.servers.lmdeploy import LMDeployEngine

    urls, engines = cfg.rl.urls, list[LMDeployEngine]()
    try:
        for url in urls:
            engines.append(
                LMDeployEngine(
                    url,
                    model=cfg.model,
                    routes=cfg.rl.replay != "off",
                    concurrency=-(-concurrency // len(urls)),
                    bucket_mb=cfg.rl.bucket_mb,
                    distributed=cfg.rl.sync == "distributed",
                )
            )
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return engines[0] if len(engines) == 1 else Several(engines, cfg.rl.bucket_mb << 20)


def _ray_workers(cfg: Config, rollouts: int, longest: int) -> Callable[[], RolloutEngine]:
    """rollouts: of all ranks at one time."""
    from trainer.rl.servers.own_engine import OwnEngine
    from trainer.rl.servers.ray_workers import RayWorkers
    from trainer.rl.workers.blank import Blank

    rl, precision = cfg.rl, cfg.precision
    batch = min(rl.concurrent, -(-rollouts // rl.rollout_workers))
    blank = Blank(cfg.model, precision.linears, precision.experts)
    pages = batch * -(-longest // KEYS)
    device = "cuda" if rl.ray_gpus else "cpu"
    make = partial(
        OwnEngine, blank, version=-1, device=device, cache_tokens=pages * KEYS, batch=batch, chunk=max(batch, CHUNK)
    )
    return partial(
        RayWorkers, make, rl.rollout_workers, address=rl.ray_address, cpus=rl.ray_cpus, gpus=rl.ray_gpus,
        bucket_mb=rl.bucket_mb,
    )  # fmt: skip


def longest_rollout(cfg: Config, questions: Questions) -> int:
    """The most tokens of a prompt of any question and its answer together. Raises UserError where a rollout on a
    question of training may be longer than a window."""
    rl, window = cfg.rl, cfg.data.seq_len
    longest = max(questions.train, key=lambda one: len(one.prompt))
    inputs = len(longest.prompt) + rl.max_tokens - 1  # the last token is a label only
    if inputs > window:
        allowed = f"{window + 1 - len(longest.prompt)} or less"
        raise UserError(
            f"rl.max_tokens={rl.max_tokens} on the longest prompt, of {len(longest.prompt)} tokens "
            f"({longest.record.where}), makes rollouts of up to {inputs} inputs, and a window has "
            f"data.seq_len={window}; use rl.max_tokens={allowed}, or data.seq_len={inputs} or more",
            where="rl.max_tokens",
            value=rl.max_tokens,
            allowed=allowed,
        )
    every = [questions.train, *questions.heldout.values()]
    return rl.max_tokens + max(len(one.prompt) for some in every for one in some)
