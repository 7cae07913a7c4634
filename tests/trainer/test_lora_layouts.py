"""Adapters spread over ranks against one process: loss, every gradient, the gradient norm, an update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.sharding.fsdp import keep_gathered
from parallel.sharding.local import local_part, local_region
from parallel.world import World
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close
from tests.trainer.spread import BATCH, Spread, whole
from trainer.config.keys import Config, LoraConfig
from trainer.data.synthetic import open_synthetic
from trainer.model.decoder import Decoder
from trainer.model.lora.adapt import adapt, adapters, init_adapters, is_b, rates
from trainer.objectives.next_token import NextToken
from trainer.objectives.scalars import GlobalBatch
from trainer.optim.native import NativeEngine
from trainer.parallelize import build_meshes, parallelize, share_of

LORA = LoraConfig(target="all", rank=3, alpha=6.0, plus_ratio=4.0)
ONE_GROUP = (("router_groups", 1), ("experts_per_token", 4))
SPREADS = [
    Spread(1, 4, 4),
    Spread(1, 4, 4, recompute="full", options=(("overlap", 2),)),
    Spread(1, 4, 4, ONE_GROUP),
    Spread(1, 4, 1),
    Spread(2, 2, 2, options=(("reshard_experts", True),)),
    Spread(1, 2, 4, options=(("cp", 2),)),
]
PAIRS = [
    Spread(1, 2, 2, recompute="full", options=(("overlap", 2),)),
    Spread(1, 2, 2, ONE_GROUP),
    Spread(1, 2, 1),
    Spread(2, 1, 1),
    Spread(1, 1, 2, options=(("cp", 2),)),
]


def model_of(cfg: Config, dtype: torch.dtype, device_type: str = "cpu") -> tuple[Decoder, Any]:
    with torch.device("meta"):
        model = adapt(Decoder(cfg.model), LORA).to(dtype)
    meshes = build_meshes(cfg, device_type)
    parallelize(model, meshes, cfg, device_type)
    model.to_empty(device="cpu")
    model.init_weights(3)
    init_adapters(model, 3)
    with torch.no_grad():
        for name, weight in adapters(model).items():  # at zero, Bs would hide every fault of A
            if is_b(name):
                drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3
                local_part(weight).copy_(drawn[local_region(weight)])
    return model, meshes


def one_step(cfg: Config, dtype: torch.dtype) -> tuple[float, float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradient norm, gradients and the weights after an update by AdamW."""
    model, meshes = model_of(cfg, dtype)
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    world = World(rank=rank, size=ranks)
    place, readers = (meshes.layout.place(world.rank), meshes.layout.readers) if meshes else (None, 1)
    data = open_synthetic(vocab_size=cfg.model.vocab_size, seq_len=16, seed=1)
    objective, whole_batch = NextToken(chunk=32), GlobalBatch(1000, 2, world)
    engine = NativeEngine(model, cfg.optim, world, meshes.shard_group if meshes else None, rates=rates(model, LORA))
    engine.prepare()
    count, loss = BATCH // readers // 2, torch.zeros((), dtype=torch.float64)
    for micro in range(2):
        first = micro * BATCH // 2 + (place.reader if place else 0) * count
        keep_gathered([block.moe.experts for block in model.blocks], keep=micro == 0)
        batch = data.stream.batch(first, count).part(share_of(meshes, cfg))
        total = objective(model, batch, whole_batch).total
        engine.backward(total)
        loss += total.detach()
    named = adapters(model)
    gradients = {name: whole(weight.grad) for name, weight in named.items()}
    for name, weight in named.items():
        if ranks > 1 and not isinstance(weight, DTensor):
            dist.all_reduce(gradients[name])
    assert not [name for name, weight in model.named_parameters() if weight.grad is not None and name not in named]
    norm = engine.step(1, 2)["grad_norm"].item()
    world.sum_tensor(loss)
    return loss.item(), norm, gradients, {name: whole(weight) for name, weight in named.items()}


def on_each(spreads: list[Spread]) -> list[Any]:
    found = [one_step(spread.config(), spread.dtype) for spread in spreads]
    return found if dist.get_rank() == 0 else []


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_layouts_equal_one_process(ranks):
    alone: dict[Any, Any] = {}
    spreads = SPREADS if ranks == 4 else PAIRS
    results = on_ranks(ranks, on_each, spreads, init=True, timeout_s=120.0)[0]
    for spread, (loss, norm, gradients, weights) in zip(spreads, results, strict=True):
        if spread.model not in alone:
            alone[spread.model] = one_step(Spread(1, 1, 1, spread.model).config(), torch.float64)
        expected = alone[spread.model]
        assert abs(loss - expected[0]) <= 1e-12 * expected[0], spread
        assert abs(norm - expected[1]) <= 1e-6 * expected[1], spread  # rows of squares are added in fp32
        assert_close(gradients, expected[2], 1e-10)
        assert_close(weights, expected[3], 1e-6)
        squares = sum(gradient.square().sum().item() for gradient in gradients.values())
        assert abs(norm - squares**0.5) <= 1e-6 * norm
