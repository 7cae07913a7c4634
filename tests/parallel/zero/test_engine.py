"""DeepSpeed's ZeRO against the native engine, on two ranks, and its internal names."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from parallel.sharding.fragment import Fragment
from parallel.world import start_world
from parallel.zero.adamw import CountedAdamW
from tests.distributed.pool import on_ranks
from tests.parallel.zero.async_io import need_async_io
from tests.parallel.zero.fresh_groups import forget_groups
from trainer.config.keys import OptimConfig
from trainer.optim.build import build_engine
from trainer.optim.engine import Engine

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")

STEPS, MICRO_BATCHES = 6, 2
VARIANTS = {
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-1, offloaded": {"zero_stage": 1, "offload": "cpu"},
    "ZeRO-2, offloaded": {"zero_stage": 2, "offload": "cpu"},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-3, state offloaded": {"zero_stage": 3, "offload": "cpu"},
    "ZeRO-3, all offloaded": {"zero_stage": 3, "offload": "cpu", "offload_params": "cpu"},
    "ZeRO-3, state on NVMe": {"zero_stage": 3, "offload": "nvme"},
    "ZeRO-3, state on NVMe, weights offloaded": {"zero_stage": 3, "offload": "nvme", "offload_params": "cpu"},
}
WIDE = 440  # of the stack on NVMe: two ranks then have partitions of more than 1 MiB, and a smaller one in memory
QUICK = ("ZeRO-2, offloaded", "ZeRO-3, all offloaded")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


built: list[Engine] = []  # in this process, to be closed


def config(width: int = 11, **keys) -> OptimConfig:
    return OptimConfig(lr=0.05 * 11 / width, clip_norm=1.0, weight_decay=0.3, warmup_steps=2, **keys)


class Stack(nn.Module):
    """Sizes that no number of ranks divides, so that parameters cross the border of two partitions; one of three
    dimensions, as experts have, and one of the root, as an LM head."""

    def __init__(self, width: int = 11) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(7, width), nn.LayerNorm(width), Blend(width), nn.Tanh())
        self.head = nn.Parameter(torch.randn(3, width) / 3 * (11 / width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Blend(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, width, width) / 5 * (11 / width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nh,ekh->nk", x, self.experts)


def whole(model: nn.Module) -> list[Tensor]:
    """Copies of all parameters. Collective where they are partitioned."""
    parameters = list(model.parameters())
    if not hasattr(parameters[0], "ds_numel"):
        return [p.detach().clone() for p in parameters]
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        return [p.detach().clone() for p in parameters]


def build(cfg: OptimConfig, world, width: int = 11) -> tuple[nn.Module, Engine]:
    torch.manual_seed(3)
    model = Stack(width)
    engine = build_engine(model, cfg, world)
    engine.prepare()
    built.append(engine)
    return model, engine


def train(model: nn.Module, engine: Engine, world, first: int = 1, last: int = STEPS) -> dict[str, list[float]]:
    """Losses summed over ranks and gradient norms. The fourth step is not finite."""
    told: dict[str, list[float]] = {"loss": [], "norm": []}
    for step in range(first, last + 1):
        total = torch.zeros(())
        for number in range(MICRO_BATCHES):
            generator = torch.Generator().manual_seed(1000 * step + 10 * number + world.rank)
            x, y = torch.randn(5, 7, generator=generator), torch.randn(5, 3, generator=generator)
            loss = (model(x) @ model.head.t() - y).square().sum() / 4  # the head outside of the forward pass
            total += loss.detach()
            engine.backward(loss * float("inf") if step == 4 else loss)
        update = engine.step(step, STEPS)
        told["loss"].append(world.sum_tensor(total).item())
        told["norm"].append(update["grad_norm"].item())
        told["skipped"] = [update["skipped_in_a_row"].item(), update["skipped"].item()]
    return told


def on_two_ranks(function, *arguments):
    return on_ranks(2, in_a_run, function, *arguments, timeout_s=120)


def in_a_run(function, *arguments):
    world = start_world("cpu", 60.0)
    built.clear()
    try:
        return function(world, *arguments)
    finally:
        for engine in built:
            engine.close()
        world.close()
        forget_groups()


def steps(world, keys: dict, width: int = 11) -> tuple[dict[str, list[float]], list[list[Tensor]]]:
    """Return what `train` reports, and the weights after every step."""
    model, engine = build(config(width, **keys), world, width)
    weights, told = [], {"loss": [], "norm": []}
    for step in range(1, STEPS + 1):
        found = train(model, engine, world, step, step)
        told = {**found, **{key: [*told[key], *found[key]] for key in ("loss", "norm")}}
        weights.append(whole(model))
    return told, weights


def internals(world, stage: int) -> dict[str, bool]:
    """The internal names of DeepSpeed that parallel/zero/deepspeed_private.py uses, and whether they are as it expects
    after a step."""
    import deepspeed
    from deepspeed.ops.op_builder.cpu import AsyncIOBuilder
    from deepspeed.runtime.swap_tensor.optimizer_utils import OptimizerStateSwapInfo

    model, engine = build(config(engine="deepspeed", zero_stage=stage, offload="cpu"), world)
    train(model, engine, world, last=1)
    zero, parameters = engine.zero, list(model.parameters())
    found = {
        "param_groups": all("lr" in group for group in zero.param_groups),
        "overflow": zero.overflow in (False, 0),
        "__compatible_ops__": deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False,
        "ZERO_SUPPORTED_OPTIMIZERS": CountedAdamW in deepspeed.runtime.zero.utils.ZERO_SUPPORTED_OPTIMIZERS,
    }
    if stage < 3:
        places = [parameter._hp_mapping for parameter in parameters]
        return found | {
            "single_partition_of_fp32_groups": all(flat.ndim == 1 for flat in zero.single_partition_of_fp32_groups),
            "refresh_fp32_params": callable(zero.refresh_fp32_params),
            "_hp_mapping": all(
                place is None
                or (
                    place.param_group_index < len(zero.single_partition_of_fp32_groups)
                    and place.hp_fragment_address.numel == place.lp_fragment_address.numel
                    and place.lp_fragment_address.start >= 0
                )
                for place in places
            )
            and any(place is not None for place in places),
        }
    flats = zero.fp32_partitioned_groups_flat
    positions = [zero.grad_position[zero.get_param_id(parameter)] for parameter in parameters]
    return found | {
        "fp32_partitioned_groups_flat": sum(flat.numel() for flat in flats) == sum(size for _, _, size in positions),
        "fp16_partitioned_groups_flat": [len(flat) for flat in zero.fp16_partitioned_groups_flat]
        == list(map(len, flats)),
        "fp16_groups": [parameter for group in zero.fp16_groups for parameter in group] != [],
        "one gradient": all(
            flat.grad.untyped_storage().data_ptr() == zero.grad_partitions_flat_buffer.data_ptr() for flat in flats
        ),
        "one copy of the weights": all(
            flat.data_ptr() == low.data_ptr()
            for flat, low in zip(flats, zero.fp16_partitioned_groups_flat, strict=True)
        ),
        "ds_shape and ds_numel": all(parameter.ds_shape.numel() == parameter.ds_numel for parameter in parameters),
        "_swappable_optimizer_subgroup": not zero._swappable_optimizer_subgroup(0),
        "fp16_partitioned_groups_flat_numel": list(map(int, zero.fp16_partitioned_groups_flat_numel))
        == list(map(len, flats)),
        "_offload_grad_partition_at_boundary": [*signature(zero._offload_grad_partition_at_boundary).parameters]
        == ["param", "grad_buffer", "offload_fp32_gradients", "offload_fp32_offsets"],
        "swap in and out": all(
            next(iter(signature(getattr(zero, name)).parameters)) == "sub_group_id"
            for name in (
                "_optimizer_states_and_gradient_swap_in",
                "_optimizer_states_and_gradient_swap_out",
                "_release_swap_buffers",
            )
        ),
        "OptimizerStateSwapInfo": callable(OptimizerStateSwapInfo.get_swap_paths),
        "AsyncIOBuilder": AsyncIOBuilder.NAME == "async_io",
        "persistent_parameters": all(parameter.numel() for parameter in zero.persistent_parameters),
        "F.linear": torch.nn.functional.linear is torch._C._nn.linear,
    }


@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_still_has_the_internals_that_are_used(stage):
    for found in on_two_ranks(internals, stage):
        assert all(found.values()), found


def files_of_a_step(world, keys: dict) -> dict[str, Any]:
    model, engine = build(config(WIDE, engine="deepspeed", **keys), world, WIDE)
    train(model, engine, world, last=1)
    files = Path(engine.files.path).rglob("*.swp")
    infos = engine.zero.optimizer_swapper.swap_params_info.values()
    return {
        "files": sorted(path.name for path in files),
        "in memory": [flat.numel() > 0 for flat in engine.zero.fp32_partitioned_groups_flat],
        "gradients": [info.unswapped_gradients for info in infos],
    }


@pytest.mark.slow
def test_weights_and_moments_are_in_files_and_gradients_are_not(tmp_path: Path):
    need_async_io(tmp_path)
    keys = {**VARIANTS["ZeRO-3, state on NVMe"], "nvme_dir": str(tmp_path)}
    for found in on_two_ranks(files_of_a_step, keys):
        assert [name.rpartition("-")[0] for name in found["files"]] == ["", "exp_avg", "exp_avg_sq"]
        assert found["in memory"] == [False, True]  # of the decayed weights, and of the small ones
        assert found["gradients"] == [{}]


@cache
def native(width: int):
    return on_two_ranks(steps, {}, width)


@pytest.fixture
def variant(name: str, tmp_path: Path) -> tuple[dict[str, Any], int]:
    """(the keys of `optim`, the width of the stack)."""
    keys = VARIANTS[name]
    if keys.get("offload") != "nvme":
        return keys, 11
    need_async_io(tmp_path)
    return {**keys, "nvme_dir": str(tmp_path)}, WIDE


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_native_engine(name, variant):
    keys, width = variant
    found = on_two_ranks(steps, {"engine": "deepspeed", **keys}, width)
    (expected, expected_weights), _ = native(width)
    assert expected["norm"][0] > 2.0  # clipping has something to do
    for told, weights in found:
        for ours, theirs in zip(expected_weights[0], weights[0], strict=True):
            assert (theirs - ours).norm() <= 1e-6 * ours.norm()
        assert told["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        finite = [norm for norm in told["norm"] if norm != float("inf")]
        assert finite == pytest.approx([norm for norm in expected["norm"] if norm < float("inf")], rel=1e-5)
        assert told["skipped"] == expected["skipped"] == [0, 1]
        for before, after in zip(weights[2], weights[3], strict=True):
            assert torch.equal(before, after)
        for ours, theirs in zip(expected_weights[-1], weights[-1], strict=True):
            assert (theirs - ours).norm() <= 1e-5 * ours.norm()


def save(world, directory: str, keys: dict, width: int) -> tuple[dict[str, list[float]], list[Tensor]]:
    model, engine = build(config(width, engine="deepspeed", **keys), world, width)
    train(model, engine, world, last=4)
    dcp.save({**engine.weights(model), **engine.state()}, checkpoint_id=directory)
    return train(model, engine, world, first=5), whole(model)


def load(world, directory: str, keys: dict, width: int) -> tuple[dict[str, list[float]], list[Tensor]]:
    model, engine = build(config(width, engine="deepspeed", **keys), world, width)
    for weight in engine.weights(model).values():
        (weight.part if isinstance(weight, Fragment) else weight.detach()).zero_()
    dcp.load({**engine.weights(model), **engine.state()}, checkpoint_id=directory)
    engine.refresh()
    return train(model, engine, world, first=5), whole(model)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_resumes_bitwise(name, variant, tmp_path: Path):
    saved = on_two_ranks(save, str(tmp_path / "checkpoint"), *variant)
    resumed = on_two_ranks(load, str(tmp_path / "checkpoint"), *variant)
    for (told, weights), (again, loaded) in zip(saved, resumed, strict=True):
        assert again == told
        assert all(torch.equal(a, b) for a, b in zip(weights, loaded, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]  # no file of the state is left


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if "NVMe" in name])
@pytest.mark.parametrize("other", ["ZeRO-3", "ZeRO-3, all offloaded"])
def test_a_checkpoint_moves_between_nvme_and_other_places(name, other, variant, tmp_path: Path):
    keys, width = variant
    for number, (one, two) in enumerate([(keys, VARIANTS[other]), (VARIANTS[other], keys)]):
        saved = on_two_ranks(save, str(tmp_path / str(number)), one, width)
        resumed = on_two_ranks(load, str(tmp_path / str(number)), two, width)
        for (told, weights), (again, loaded) in zip(saved, resumed, strict=True):
            assert again["loss"] == pytest.approx(told["loss"], rel=1e-6)
            for before, after in zip(weights, loaded, strict=True):
                assert (after - before).norm() <= 1e-6 * before.norm()
