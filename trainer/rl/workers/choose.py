"""The workers of a run, by `rl.environment_workers` and `rl.placement`."""

from __future__ import annotations

from pathlib import Path

from trainer.config.rl.keys import RlConfig
from trainer.rl.workers.actors import RayWorker, connect
from trainer.rl.workers.body import Given
from trainer.rl.workers.placed import PlacedEnvironment, PlacedReward
from trainer.rl.workers.pool import Pool, Worker
from trainer.rl.workers.process import ProcessWorker


def place_reward(cfg: RlConfig) -> PlacedReward:
    """`rl.reward` in workers."""
    return PlacedReward(_pool(cfg, ""), cfg.deadline_s)


def place_environment(cfg: RlConfig) -> PlacedEnvironment:
    """`rl.environment` in workers, whose final answers are worth what `rl.reward` says."""
    return PlacedEnvironment(PlacedReward(_pool(cfg, cfg.environment), cfg.deadline_s))


def _pool(cfg: RlConfig, environment: str) -> Pool:
    given = Given(environment, cfg.reward, Path.cwd())

    def in_process(name: str) -> Worker:
        return ProcessWorker(name, given)

    def in_cluster(name: str) -> Worker:
        ray = connect("rl.placement", "ray", cfg.ray_address)
        return RayWorker(name, given, ray, cfg.ray_cpus)

    if cfg.placement == "ray":
        remedy = "fewer rl.environment_workers, less rl.ray_cpus, or more machines"
        return Pool(in_cluster, cfg.environment_workers, "Ray worker", remedy)
    return Pool(in_process, cfg.environment_workers, "worker", "fewer rl.environment_workers")
