"""Layouts of ranks for tests: one step of a whole model spread over them, or in one process."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.sharding.fsdp import keep_gathered
from parallel.world import World
from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import Config, ParallelConfig
from trainer.data.synthetic import open_synthetic
from trainer.model.decoder import Decoder
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import GlobalBatch
from trainer.parallelize import build_meshes, parallelize

MODEL = {
    "num_experts": 32, "experts_per_token": 8, "router_groups": 8, "expert_width": 16, "z_loss_coef": 1e-3,
    "init_std": 0.2,
}  # fmt: skip
BATCH = 16  # sequences over all ranks


class Spread(NamedTuple):
    dp_replicate: int
    dp_shard: int
    ep: int
    model: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float64
    recompute: str = "none"

    @property
    def ranks(self) -> int:
        return self.dp_replicate * self.dp_shard

    def config(self) -> Config:
        cfg = tiny_config("unused", model=MODEL | dict(self.model), recompute=self.recompute)
        sizes = {"dp_replicate": self.dp_replicate, "dp_shard": self.dp_shard, "ep": self.ep}
        cfg.parallel = ParallelConfig(**sizes, **dict(self.options))
        return cfg


def built(cfg: Config, dtype: torch.dtype) -> tuple[Decoder, Any]:
    """The model on this rank, norms and routers included in what differs from their usual start."""
    with torch.device("meta"):
        model = Decoder(cfg.model, torch.bfloat16 if cfg.precision.linears == "bf16" else None).to(dtype)
    meshes = build_meshes(cfg, "cpu")
    parallelize(model, meshes, cfg, "cpu")
    model.to_empty(device="cpu")
    model.init_weights(3)
    return model, meshes


def step(cfg: Config, dtype: torch.dtype, micro_batches: int = 2) -> tuple[Decoder, float]:
    """Loss and gradients of BATCH sequences, in the same micro-batches whatever the number of ranks."""
    model, _ = built(cfg, dtype)
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    data = open_synthetic(vocab_size=cfg.model.vocab_size, seq_len=16, seed=1)
    count, loss = BATCH // ranks // micro_batches, torch.zeros((), dtype=dtype)

    objective = NextToken(chunk=32)
    whole_batch = GlobalBatch(1000, micro_batches, World(rank=rank, size=ranks))
    for micro in range(micro_batches):
        first = micro * BATCH // micro_batches + rank * count
        keep_gathered([block.moe.experts for block in model.blocks], keep=micro < micro_batches - 1)
        total = objective(model, data.stream.batch(first, count), whole_batch).total
        total.backward()
        loss += total.detach()
    if ranks > 1:
        dist.all_reduce(loss)
        for parameter in model.parameters():  # copies of a model that is not sharded
            if not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad)
    return model, loss.item()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
