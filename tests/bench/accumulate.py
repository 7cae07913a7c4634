"""The error of gradients whose micro-batches are added up in bf16 (`precision.accumulate=bf16`) and not in fp32.

    python -m tests.bench.accumulate

Two ranks share each weight, and reduce its gradient once a step; then the same in a pipeline of two stages, on four
ranks. A tiny model in bf16, on random tokens. Relative: the norm of the difference of all gradients over their norm.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.spread import whole
from tests.trainer.tiny_run import tiny_config
from trainer.data.synthetic import open_synthetic
from trainer.objectives.choose import build_objective
from trainer.optim.build import build_engine
from trainer.parallelize import build_meshes
from trainer.run.build import build_pipeline, build_stages, ranks_alike
from trainer.run.step import accumulate_gradients

MICRO_BATCHES = (4, 16, 64)


def gradients(pp: int, accumulate: str, micro_batches: int) -> dict[str, Tensor]:
    """This rank's stages' whole gradients after a step's forward and backward."""
    cfg = tiny_config("unused", model={"num_layers": 4}, global_batch=2 * micro_batches, micro_batch=1)
    cfg.precision.linears = cfg.precision.experts = cfg.precision.payload = "bf16"
    cfg.precision.accumulate = accumulate
    cfg.parallel.pp, cfg.parallel.dp_shard, cfg.parallel.reduce_every = pp, 2, "step"
    world = World(rank=dist.get_rank(), size=dist.get_world_size(), control=dist.group.WORLD)
    objective, meshes = build_objective(cfg.train), build_meshes(cfg, "cpu")
    assert meshes is not None
    alike, place = ranks_alike(world, meshes), meshes.layout.place(world.rank)
    plan, stages = build_stages(cfg, world, alike, meshes, place, objective)
    pipeline, _ = build_pipeline(cfg, plan, stages, objective, alike, meshes)
    engine = build_engine(list(stages.values()), cfg.optim, world, meshes.shard_group, None, alike)
    engine.prepare()
    stream = open_synthetic(vocab_size=cfg.model.vocab_size, seq_len=16, seed=1).stream
    batches = [stream.batch(2 * number + place.reader, 1) for number in range(micro_batches)]
    units = 32 * micro_batches
    if pipeline is not None:
        pipeline.accumulate(batches, units, step=1)
    else:
        (model,) = stages.values()
        accumulate_gradients(model, engine, objective, batches, units, world, step=1, reduce_once=True)
    return {name: whole(p.grad) for s in stages.values() for name, p in s.named_parameters() if p.grad is not None}


def error(pp: int, micro_batches: int) -> float:
    """Relative, over all ranks' stages."""
    narrow, wide = (
        on_ranks(2 * pp, gradients, pp, accumulate, micro_batches, init=True, timeout_s=600.0)
        for accumulate in ("bf16", "fp32")
    )
    pairs = [(found[name], exact[name]) for found, exact in zip(narrow, wide, strict=True) for name in exact]
    ours, theirs = (torch.cat([pair[n].double().flatten() for pair in pairs]) for n in (0, 1))
    return ((ours - theirs).norm() / theirs.norm()).item()


def main() -> None:
    print("| micro-batches a step | two ranks | two stages of two ranks |\n|---|---|---|")
    for micro_batches in MICRO_BATCHES:
        found = [f"{error(pp, micro_batches):.1e}" for pp in (1, 2)]
        print(f"| {micro_batches} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
