"""DeepSpeed's ZeRO against the native engine, on two ranks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from parallel.world import start_world
from tests.distributed.pool import on_ranks
from tests.parallel.zero import forget_groups
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
}


def config(**keys) -> OptimConfig:
    return OptimConfig(lr=0.05, clip_norm=1.0, weight_decay=0.3, warmup_steps=2, **keys)


def build(cfg: OptimConfig, world) -> tuple[nn.Module, Engine]:
    """Sizes that no number of ranks divides, so that parameters cross the border of two partitions."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 11), nn.LayerNorm(11), nn.Tanh(), nn.Linear(11, 3, bias=False))
    engine = build_engine(model, cfg, world)
    engine.prepare()
    return model, engine


def train(model: nn.Module, engine: Engine, world, first: int = 1, last: int = STEPS) -> dict[str, list[float]]:
    """Losses summed over ranks and gradient norms. The fourth step is not finite."""
    told: dict[str, list[float]] = {"loss": [], "norm": []}
    for step in range(first, last + 1):
        total = torch.zeros(())
        for number in range(MICRO_BATCHES):
            generator = torch.Generator().manual_seed(1000 * step + 10 * number + world.rank)
            x, y = torch.randn(5, 7, generator=generator), torch.randn(5, 3, generator=generator)
            loss = (model(x) - y).square().sum() / 4
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
    try:
        return function(world, *arguments)
    finally:
        world.close()
        forget_groups()


def steps(world, keys: dict) -> tuple[dict[str, list[float]], list[list[Tensor]]]:
    """Return what `train` reports, and the weights after every step."""
    model, engine = build(config(**keys), world)
    weights, told = [], {"loss": [], "norm": []}
    for step in range(1, STEPS + 1):
        found = train(model, engine, world, step, step)
        told = {**found, **{key: [*told[key], *found[key]] for key in ("loss", "norm")}}
        weights.append([p.detach().clone() for p in model.parameters()])
    return told, weights


def internals(world) -> dict[str, bool]:
    """The internal names of DeepSpeed that parallel/offload.py uses, and whether they are as it expects."""
    import deepspeed

    model, engine = build(config(engine="deepspeed", zero_stage=1), world)
    train(model, engine, world, last=1)
    places = [parameter._hp_mapping for parameter in model.parameters()]
    return {
        "single_partition_of_fp32_groups": all(flat.ndim == 1 for flat in engine.zero.single_partition_of_fp32_groups),
        "refresh_fp32_params": callable(engine.zero.refresh_fp32_params),
        "param_groups": all("lr" in group for group in engine.zero.param_groups),
        "overflow": engine.zero.overflow in (False, 0),
        "__compatible_ops__": deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False,
        "_hp_mapping": all(
            place is None
            or (
                place.param_group_index < len(engine.partitions)
                and place.hp_fragment_address.numel == place.lp_fragment_address.numel
                and place.lp_fragment_address.start >= 0
            )
            for place in places
        )
        and any(place is not None for place in places),
    }


def test_deepspeed_still_has_the_internals_that_are_used():
    for found in on_two_ranks(internals):
        assert all(found.values()), found


@pytest.fixture(scope="module")
def native():
    return on_two_ranks(steps, {})


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_are_those_of_the_native_engine(name, native):
    found = on_two_ranks(steps, {"engine": "deepspeed", **VARIANTS[name]})
    (expected, expected_weights), _ = native
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


def save(world, directory: str, keys: dict) -> tuple[dict[str, list[float]], list[Tensor]]:
    model, engine = build(config(engine="deepspeed", **keys), world)
    train(model, engine, world, last=4)
    dcp.save({**model.state_dict(), **engine.state()}, checkpoint_id=directory)
    return train(model, engine, world, first=5), [p.detach() for p in model.parameters()]


def load(world, directory: str, keys: dict) -> tuple[dict[str, list[float]], list[Tensor]]:
    model, engine = build(config(engine="deepspeed", **keys), world)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    dcp.load({**model.state_dict(), **engine.state()}, checkpoint_id=directory)
    return train(model, engine, world, first=5), [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_resumes_bitwise(name, tmp_path: Path):
    saved = on_two_ranks(save, str(tmp_path), VARIANTS[name])
    for (told, weights), (again, loaded) in zip(saved, on_two_ranks(load, str(tmp_path), VARIANTS[name]), strict=True):
        assert again == told
        assert all(torch.equal(a, b) for a, b in zip(weights, loaded, strict=True))
