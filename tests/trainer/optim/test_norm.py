"""The gradient norm against fp64 on tensors with many numbers, and as one decision of all ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from parallel.world import World, start_world
from tests.distributed.pool import on_ranks
from trainer.config.keys import OptimConfig
from trainer.optim.native import NativeEngine
from trainer.optim.norm import ROW, sum_of_squares

CPU = torch.device("cpu")
LENGTHS = (0, 1, ROW - 1, ROW, ROW + 1, 3 * ROW + 7)


def exact(tensors: list[Tensor]) -> float:
    return sum(part.double().square().sum().item() for tensor in tensors for part in tensor.reshape(-1).split(1 << 20))


@pytest.mark.parametrize("value", [0.1, 0.37, 0.9999, 3.3333e-5], ids=str)
def test_equal_numbers_which_a_running_sum_rounds_alike(value):
    tensors = [torch.full((1_500_000,), value), torch.full((700, 3), value)]
    assert sum_of_squares(tensors, CPU).item() == pytest.approx(exact(tensors), rel=1e-6)


def test_random_numbers_of_many_sizes():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1_000_003, generator=generator) * 10.0 ** (place % 5 - 2) for place in range(3)]
    assert sum_of_squares(tensors, CPU).item() == pytest.approx(exact(tensors), rel=1e-6)


def test_a_hundred_million_numbers():
    """torch's own norm in fp32 is 1e-2 off."""
    tensor = torch.full((100_000_000,), 0.1)
    assert sum_of_squares([tensor], CPU).item() == pytest.approx(exact([tensor]), rel=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_no_number_is_left_out(length, dtype):
    tensor = torch.arange(1.0, length + 1).remainder(13).to(dtype)
    assert sum_of_squares([tensor], CPU).item() == pytest.approx(exact([tensor]), rel=1e-6)
    assert sum_of_squares([tensor, tensor], CPU).item() == pytest.approx(2 * exact([tensor]), rel=1e-6)


def test_a_tensor_that_is_not_contiguous_and_none_at_all():
    turned = torch.arange(6000.0).view(2, 3000).t()
    assert sum_of_squares([turned[::2]], CPU).item() == pytest.approx(exact([turned[::2]]), rel=1e-6)
    assert sum_of_squares([], CPU).item() == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, ROW, 3 * ROW + 6])
def test_one_number_that_is_not_finite_shows(bad, place):
    tensor = torch.ones(3 * ROW + 7)
    tensor[place] = bad
    assert not sum_of_squares([torch.ones(5), tensor], CPU).isfinite()


@pytest.mark.gpu
def test_a_gpu_sums_in_fp64():
    tensors = [torch.full((n,), 0.1, device="cuda") for n in (1, 1000, 10_000_000)]
    assert sum_of_squares(tensors, tensors[0].device).item() == pytest.approx(exact(tensors), rel=1e-9)


# ---- over ranks

LAYOUTS: dict[str, tuple[int, ...]] = {"replicas": (), "2 replicas of 2 shards": (2, 2), "4 shards": (1, 4)}
PARTS = ("dense", "expert", "vector")


class Weights(nn.Module):
    """A matrix over shards and replicas, experts over shards, a vector that is whole on every rank."""

    def __init__(self, layout: tuple[int, ...], fill: float) -> None:
        super().__init__()
        dense, expert = torch.full((64, 256), fill), torch.full((4, 2, 64), fill)
        if layout:
            mesh = init_device_mesh("cpu", layout, mesh_dim_names=("replica", "shard"))
            dense = distribute_tensor(dense, mesh, [Replicate(), Shard(0)])
            expert = distribute_tensor(expert, mesh["shard"], [Shard(0)])  # as expert parallelism places them
        self.dense, self.expert = nn.Parameter(dense), nn.Parameter(expert)
        self.vector = nn.Parameter(torch.full((33,), fill))
        self.group = mesh.get_group("shard") if layout else None


LARGE = 1e6


def steps_with_one_bad_rank(layout: tuple[int, ...], bad: float) -> tuple[list[float], list[float], list[float]]:
    """A number on rank 3 becomes `bad` after the gradients are reduced: at every second step, in each weight once."""
    world = start_world("cpu", 60.0)
    try:
        model = Weights(layout, 1.0)
        cfg = OptimConfig(lr=0.1, schedule="constant")
        engine = NativeEngine(model, cfg, world, model.group, skip_above=LARGE / 10)
        engine.prepare()
        norms, skipped = [], []
        for step in range(1, 2 * len(PARTS) + 2):
            gradients = Weights(layout, 0.5)
            for name, p in model.named_parameters():
                p.grad = gradients.get_parameter(name).detach()
            if step % 2 == 0 and world.rank == 3:
                spoil_after_reduction(world, model, PARTS[step // 2 - 1], bad)
            update = engine.step(step, step)
            norms.append(update["grad_norm"].item())
            skipped.append(update["skipped"].item())
        return norms, skipped, [p.sum().item() for p in map(local, model.parameters())]
    finally:
        world.close()


def spoil_after_reduction(world: World, model: nn.Module, part: str, bad: float) -> None:
    """FSDP has reduced the gradients of DTensors by now; those of plain parameters are summed inside the step."""
    p = model.get_parameter(part)
    if isinstance(p, DTensor):
        local(p.grad)[0] = bad
        return
    reduce = world.sum_gradients

    def reduce_and_spoil(parameters):
        reduce(parameters)
        p.grad[0] = bad
        object.__delattr__(world, "sum_gradients")  # the next step is sound

    object.__setattr__(world, "sum_gradients", reduce_and_spoil)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize("bad", [float("nan"), LARGE], ids=["not finite", "above the limit"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_rank_skips_a_step_that_one_cannot_take(layout, bad):
    found = on_ranks(4, steps_with_one_bad_rank, layout, bad)
    for norms, skipped, weights in found:
        assert skipped == [0, 1, 1, 2, 2, 3, 3]
        assert norms[::2] == [found[0][0][0]] * 4
        assert all(norm != norm if bad != bad else norm > LARGE / 10 for norm in norms[1::2])
        assert all(weight == weight for weight in weights)  # none took the NaN


def norm_in(layout: tuple[int, ...] | None) -> float:
    world = start_world("cpu", 60.0) if layout is not None else World()
    try:
        model = Weights(layout or (), 1.0)
        engine = NativeEngine(model, OptimConfig(), world, model.group)
        engine.prepare()
        for p, gradient in zip(model.parameters(), Weights(layout or (), 0.37).parameters(), strict=True):
            p.grad = gradient.detach()
            if not isinstance(p, DTensor):
                p.grad /= world.size  # the engine sums them
        return engine.step(1, 1)["grad_norm"].item()
    finally:
        world.close()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_norm_does_not_depend_on_the_layout(layout):
    alone = norm_in(None)
    assert alone == pytest.approx(0.37 * (64 * 256 + 4 * 2 * 64 + 33) ** 0.5, rel=1e-6)
    assert on_ranks(4, norm_in, layout) == pytest.approx([alone] * 4, rel=1e-6)
