"""A whole model spread over ranks against the same model in one process: loss and every gradient."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.sharding.fsdp import keep_gathered
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close, relative
from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import Config, ParallelConfig
from trainer.data.synthetic import SyntheticData
from trainer.model import attention
from trainer.model.decoder import Decoder
from trainer.objectives.next_token import loss_terms
from trainer.parallelize import build_meshes, parallelize

MODEL = {
    "num_experts": 32, "experts_per_token": 8, "router_groups": 8, "expert_width": 16, "z_loss_coef": 1e-3,
    "init_std": 0.2,
}  # fmt: skip
BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}
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
    data = SyntheticData(vocab_size=cfg.model.vocab_size, seq_len=16, seed=1)
    count, loss = BATCH // ranks // micro_batches, torch.zeros((), dtype=dtype)

    def over_ranks(counts: Tensor) -> Tensor:
        counts = counts.clone()
        dist.all_reduce(counts)
        return counts

    for micro in range(micro_batches):
        first = micro * BATCH // micro_batches + rank * count
        keep_gathered([block.moe.experts for block in model.blocks], keep=micro < micro_batches - 1)
        terms = loss_terms(
            model,
            data.train_batch(first, count),
            token_count=1000,
            micro_batches=micro_batches,
            chunk=32,
            ranks=ranks,
            sum_over_ranks=over_ranks if ranks > 1 else None,
        )
        terms.total.backward()
        loss += terms.total.detach()
    if ranks > 1:
        dist.all_reduce(loss)
        for parameter in model.parameters():  # copies of a model that is not sharded
            if not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad)
    return model, loss.item()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def spread_steps(spreads: list[Spread]) -> list[tuple[float, dict[str, Tensor], dict[str, Tensor]]]:
    results = []
    for spread in spreads:
        model, loss = step(spread.config(), spread.dtype)
        named = dict(model.named_parameters())
        results.append(
            (
                loss,
                {name: whole(p) for name, p in named.items()},
                {name: whole(p.grad) for name, p in named.items() if p.grad is not None},
            )
        )
    rank = dist.get_rank()
    return results if rank == 0 else []


@cache
def alone(model: tuple[tuple[str, Any], ...], dtype: torch.dtype) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    built, loss = step(Spread(1, 1, 1, model).config(), dtype)
    named = dict(built.named_parameters())
    return loss, {n: whole(p) for n, p in named.items()}, {n: whole(p.grad) for n, p in named.items()}  # type: ignore[arg-type]


def check(spreads: list[Spread]) -> None:
    (ranks,) = {spread.ranks for spread in spreads}
    found = on_ranks(ranks, spread_steps, spreads, init=True, timeout_s=120.0)[0]
    for spread, (loss, weights, grads) in zip(spreads, found, strict=True):
        loss_alone, weights_alone, grads_alone = alone(spread.model, spread.dtype)
        for name, weight in weights_alone.items():
            assert torch.equal(weights[name], weight), f"{spread}: {name} is not what one process draws"
        assert abs(loss - loss_alone) <= BOUND[spread.dtype] * abs(loss_alone), spread
        assert_close(grads, grads_alone, BOUND[spread.dtype])


def test_eight_ranks_in_every_layout_equal_one_process():
    check([Spread(*sizes) for sizes in ((1, 8, 8), (1, 8, 4), (2, 4, 2), (1, 8, 2), (2, 4, 4), (1, 8, 1))])


def test_four_groups_on_eight_ranks_split_the_width():
    groups = (("router_groups", 4),)
    check([Spread(*sizes, model=groups) for sizes in ((1, 8, 8), (2, 4, 4), (1, 8, 4))])


def test_in_fp32_they_differ_by_its_rounding():
    """Where every axis is cut, and where the width is: that a layout is right is seen in fp64, better than here."""
    groups = (("router_groups", 4),)
    check([Spread(2, 4, 2, dtype=torch.float32), Spread(1, 8, 8, model=groups, dtype=torch.float32)])


def test_width_split_and_sharding_of_the_same_dimension():
    groups = (("router_groups", 2),)
    check([Spread(1, 8, 4, model=groups), Spread(2, 4, 4, model=groups), Spread(1, 8, 8, model=groups)])


def test_every_option_leaves_the_numbers_as_they_are():
    options: list[dict[str, Any]] = [
        {"combine": "reduce_scatter"},
        {"dispatch": "all_to_all"},
        {"regather": True},
        {"overlap": 2},
        {"reshard_experts": True, "reshard_dense": False},
    ]
    check([Spread(1, 4, 2, options=tuple(option.items())) for option in options])


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recompute_repeats_the_exchange(recompute):
    check([Spread(1, 4, 2, recompute=recompute), Spread(1, 4, 4, options=(("overlap", 2),), recompute=recompute)])


def bf16_step(spread: Spread) -> tuple[float, dict[str, Tensor], set[torch.dtype]]:
    """Loss and gradients in bf16 compute, and the dtypes in which the attention saw its norms' gains."""
    cfg, seen = spread.config(), set()
    cfg.precision.linears = cfg.precision.experts = cfg.precision.payload = "bf16"
    plain = attention.norm_rotary

    def watching(x: Tensor, gain: Tensor, *rest: Any) -> Tensor:
        seen.add(gain.dtype)
        return plain(x, gain, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "norm_rotary", watching)
        model, loss = step(cfg, torch.float32)
    return loss, {name: whole(p.grad) for name, p in model.named_parameters()}, seen  # type: ignore[arg-type]


def test_bf16_compute_keeps_fp32_masters_norms_and_gradients():
    loss, grads, seen = bf16_step(Spread(1, 1, 1))
    exact = alone((), torch.float32)[2]
    for sizes in ((1, 4, 2), (2, 2, 2), (1, 4, 4)):
        by_rank = on_ranks(4, bf16_step, Spread(*sizes), init=True)
        assert by_rank[0][0] == pytest.approx(loss, rel=2e-3)
        assert {grad.dtype for grad in by_rank[0][1].values()} == {torch.float32}
        assert by_rank[0][2] == seen == {torch.float32}
        for name, grad in by_rank[0][1].items():  # as far from fp32 as one process in bf16 is, no farther
            noise = relative(grads[name], exact[name])
            assert relative(grad, exact[name]) < 2 * noise + 0.01, f"{name} at {sizes}"


def test_copies_without_shards_equal_one_process():
    check([Spread(2, 1, 1)])


def test_one_router_group_goes_by_all_to_all():
    check([Spread(1, 4, 4, model=(("router_groups", 1),))])
