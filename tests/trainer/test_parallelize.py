"""A whole model spread over ranks against the same model in one process: loss and every gradient."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.torch_private import process_groups
from tests.distributed.pool import on_ranks
from tests.trainer.model.tiny import assert_close, relative
from tests.trainer.spread import Spread, built, step, whole
from tests.trainer.tiny_run import tiny_config
from trainer.model import attention
from trainer.parallelize import build_meshes

BOUND = {torch.float32: 1e-5, torch.float64: 1e-10}


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
    return loss, {n: whole(p) for n, p in named.items()}, {n: whole(p.grad) for n, p in named.items()}


def check(spreads: list[Spread]) -> None:
    (ranks,) = {spread.ranks for spread in spreads}
    found = on_ranks(ranks, spread_steps, spreads, init=True, timeout_s=120.0)[0]
    for spread, (loss, weights, grads) in zip(spreads, found, strict=True):
        loss_alone, weights_alone, grads_alone = alone(spread.model, spread.dtype)
        for name, weight in weights_alone.items():
            assert torch.equal(weights[name], weight), f"{spread}: {name} is not what one process draws"
        assert abs(loss - loss_alone) <= BOUND[spread.dtype] * abs(loss_alone), spread
        assert_close(grads, grads_alone, BOUND[spread.dtype])


FOUR, TWO = ((("router_groups", number),) for number in (4, 2))


def test_eight_ranks_in_a_layout_of_every_kind_equal_one_process():
    """Experts on all ranks; in copies and sharded; their width split and sharded."""
    check([Spread(1, 8, 8), Spread(2, 4, 2), Spread(1, 8, 4, model=TWO)])


def test_four_ranks_with_whole_experts_or_split_ones_equal_one_process():
    check([Spread(1, 4, 1), Spread(1, 4, 4, model=TWO)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "layouts"),
    [
        ((), [(1, 8, 4), (1, 8, 2), (2, 4, 4), (1, 8, 1)]),
        (FOUR, [(1, 8, 8), (2, 4, 4), (1, 8, 4)]),
        (TWO, [(2, 4, 4), (1, 8, 8)]),
    ],
    ids=["eight groups", "four groups", "two groups"],
)
def test_eight_ranks_in_the_other_layouts_equal_one_process(groups, layouts):
    check([Spread(*sizes, model=groups) for sizes in layouts])


@pytest.mark.slow
def test_in_fp32_they_differ_by_its_rounding():
    """Layouts that cut every axis, and the width. The fp64 tests above are the sharper proof of a layout."""
    check([Spread(2, 4, 2, dtype=torch.float32), Spread(1, 8, 8, model=FOUR, dtype=torch.float32)])


def test_every_option_leaves_the_numbers_as_they_are():
    options: list[dict[str, Any]] = [
        {"combine": "reduce_scatter"},
        {"dispatch": "all_to_all"},
        {"regather": True},
        {"overlap": 2},
        {"reshard_experts": True, "reshard_dense": False},
    ]
    check([Spread(1, 4, 2, options=tuple(option.items())) for option in options])


@pytest.mark.parametrize(
    "modes", [("selective", "full"), pytest.param(("full", "selective"), marks=pytest.mark.slow)], ids="-".join
)
def test_recompute_repeats_the_exchange(modes):
    sharded, overlapping = modes
    check([Spread(1, 4, 2, recompute=sharded), Spread(1, 4, 4, options=(("overlap", 2),), recompute=overlapping)])


def bf16_steps(spreads: list[Spread]) -> list[tuple[float, dict[str, Tensor], set[torch.dtype]]]:
    return [bf16_step(spread) for spread in spreads]


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
    return loss, {name: whole(p.grad) for name, p in model.named_parameters()}, seen


def test_bf16_compute_keeps_fp32_masters_norms_and_gradients():
    loss, grads, seen = bf16_step(Spread(1, 1, 1))
    exact = alone((), torch.float32)[2]
    spreads = [Spread(*sizes) for sizes in ((1, 4, 2), (2, 2, 2), (1, 4, 4))]
    for spread, found in zip(spreads, on_ranks(4, bf16_steps, spreads, init=True)[0], strict=True):
        assert found[0] == pytest.approx(loss, rel=2e-3)
        assert {grad.dtype for grad in found[1].values()} == {torch.float32}
        assert found[2] == seen == {torch.float32}
        for name, grad in found[1].items():  # as far from fp32 as one process in bf16 is, no farther
            noise = relative(grads[name], exact[name])
            assert relative(grad, exact[name]) < 2 * noise + 0.01, f"{name} at {spread}"


def test_copies_without_shards_equal_one_process():
    check([Spread(2, 1, 1)])


def logged_steps(spread: Spread) -> list[str]:
    """The lines that `parallelize` logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("trainer.parallelize")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        built(spread.config(), torch.float32)
    finally:
        logger.removeHandler(handler)
    return lines


def test_each_step_is_logged_with_its_mesh():
    assert on_ranks(4, logged_steps, Spread(2, 2, 2, recompute="full"), init=True)[0] == [
        "place experts on the mesh expert=2 width=1; dispatch: all_gather",
        "recompute activations: full",
        "shard dense weights over dp_replicate=2 dp_shard=2, experts over dp_replicate=2 expert_dp=1",
    ]
    assert logged_steps(Spread(1, 1, 1)) == []


def test_one_router_group_goes_by_all_to_all():
    check([Spread(1, 4, 4, model=(("router_groups", 1),))])


def _groups_of_a_pipeline():
    cfg = tiny_config("unused")
    cfg.parallel.pp = 2
    meshes = build_meshes(cfg, "cpu")
    one_rank = [meshes.dense.get_group(), meshes.expert_dp.get_group(), meshes.experts.get_group("width")]
    return len(process_groups()), [group.size() for group in one_rank], len({group.group_name for group in one_rank})


def test_mesh_dimensions_of_one_rank_share_a_group():
    """Every gloo group costs a thread that wakes up a hundred times a second."""
    for groups, sizes, names in on_ranks(2, _groups_of_a_pipeline, init=True):
        assert sizes == [1, 1, 1]
        assert names == 1
        assert groups == 3  # all ranks, this rank alone, the pipeline
