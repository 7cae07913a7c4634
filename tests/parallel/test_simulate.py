"""A fake world against real processes: the same code shards a module and steps, and both are read the same way."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from parallel.dispatch.collectives import start_all_gather, start_all_to_all, start_reduce_scatter
from parallel.simulate import Collective, CollectiveLog, RankBytes, fake_world, rank_bytes
from parallel.world import start_world
from tests.distributed.pool import on_ranks

RANKS = 4


class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 6, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to_local() if isinstance(self.weight, DTensor) else self.weight
        return x.sum() * weight.sum()


class Net(nn.Module):
    """7 and 5 rows that 2 ranks do not divide, so that FSDP pads, and slices that are cut over 2 ranks by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.second = nn.Linear(7, 5, bias=False)
        self.slices = Slices()

    def forward(self, x: Tensor) -> Tensor:
        return self.slices(self.second(self.first(x).float()))


def sharded_net(mesh: DeviceMesh) -> Net:
    with torch.device("meta"):
        net = Net()
    whole = net.slices.weight
    cut = DTensor.from_local(
        whole.data[:2].clone(), mesh["inner"], [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
    )
    net.slices.weight = nn.Parameter(cut)
    fully_shard(net.first, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    fully_shard(net.slices, mesh=mesh["outer"], shard_placement_fn=lambda _: Shard(1), reshard_after_forward=False)
    fully_shard(net, mesh=mesh)
    return net


def one_step(rank: int | None = None) -> tuple[RankBytes, list[Collective]]:
    """On this rank of a real world, or for `rank` of a fake one."""
    world = start_world("cpu", 60.0) if rank is None else None
    with nullcontext(nullcontext()) if rank is None else fake_world(RANKS, rank) as tensors:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        net = sharded_net(mesh)
        with tensors, CollectiveLog((name, mesh.get_group(name)) for name in ("outer", "inner")) as log:
            net.to_empty(device="cpu")
            net(torch.zeros(3, 6)).backward()
            moments = [torch.zeros_like(p) for p in net.parameters()]
            held = rank_bytes(net.parameters(), moments)
            with log.section("optimizer"):
                dist.all_reduce(torch.zeros(()))
    if world is not None:
        world.close()
    return held, log.calls


def test_bytes_and_collectives_are_those_of_real_processes():
    real = on_ranks(RANKS, one_step)
    assert [one_step(rank) for rank in range(RANKS)] == real
    held, calls = real[3]
    # 7, 7 x 6 and 5 x 7 in halves, the second of the odd ones short; slices [2, 3, 3] of [4, 6, 3]
    assert held == RankBytes(*[4 * (3 + 3 * 6 + 2 * 7 + 18)] * 3, padding=4 * ((1 + 6 + 7) * 2 + 0))
    assert [call for call in calls if call.where == "forward"] == [
        Collective("all_gather", "inner", 2, 4 * 6 * 7, "forward"),
        Collective("all_gather", "inner", 2, 2 * (8 + 8 * 6), "forward"),
        Collective("all_gather", "outer", 2, 4 * 2 * 6 * 3, "forward"),
    ]
    backward = [call for call in calls if call.where == "backward"]
    assert sum(call.op == "all_reduce" for call in backward) == 2  # of the two that are replicated over `outer`
    assert calls[-1] == Collective("all_reduce", "default_pg", 4, 4, "optimizer")


def every_entry_point(rank: int | None = None) -> list[Collective]:
    world = start_world("cpu", 60.0) if rank is None else None
    with nullcontext(nullcontext()) if rank is None else fake_world(2, rank) as tensors:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("axis",))
        with tensors, CollectiveLog([("a", mesh.get_group()), ("b", mesh.get_group())]) as log:
            x, whole = torch.zeros(6), torch.zeros(12)
            dist.all_gather([torch.zeros(6), torch.zeros(6)], x)
            start_all_gather(x, mesh.get_group()).wait()
            start_reduce_scatter(whole, mesh.get_group()).wait()
            start_all_to_all(whole, mesh.get_group()).wait()
            dist.broadcast(x, src=0)
            dist.all_reduce(x)
            functional.all_reduce(x, "sum", mesh.get_group()).sum()
            distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None).full_tensor().sum()
    if world is not None:
        world.close()
    return log.calls


def test_every_entry_point_of_torch_is_seen():
    expected = [
        ("all_gather", 48), ("all_gather", 48), ("reduce_scatter", 48), ("all_to_all", 48), ("broadcast_", 24),
        ("all_reduce", 24), ("all_reduce", 24), ("all_gather", 48),
    ]  # fmt: skip
    calls = [Collective(op, "a/b", 2, nbytes, "forward") for op, nbytes in expected]
    assert every_entry_point(1) == calls
    assert on_ranks(2, every_entry_point) == [calls, calls]


@pytest.mark.parametrize(
    ("op", "sent"), [("all_gather", 700), ("reduce_scatter", 700), ("all_to_all", 700), ("all_reduce", 1400)]
)
def test_bytes_sent_are_those_of_a_ring(op, sent):
    assert Collective(op, "ep", 8, 800, "forward").sent == sent


def test_a_fake_world_leaves_nothing_behind():
    with fake_world(512, 511):
        assert (dist.get_rank(), dist.get_world_size()) == (511, 512)
        with pytest.raises(RuntimeError, match="already"), fake_world(2, 0):
            pass
    assert not dist.is_initialized()


def sums_over_a_mesh() -> list[float]:
    """The same mesh in a fake world, where its groups get other names, and then in the real one."""
    totals = []
    for fake in (True, False):
        world = None if fake else start_world("cpu", 60.0)
        with fake_world(RANKS, 0) if fake else nullcontext():
            if fake:
                init_device_mesh("cpu", (4, 1))
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("one", "two"))["two"]
            rows = DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)], run_check=False)
            totals.append((rows * 2).sum().full_tensor().item())
        if world is not None:
            world.close()
    return totals


def test_a_real_mesh_like_a_fake_one_before_it_has_groups_of_its_own():
    assert on_ranks(RANKS, sums_over_a_mesh) == [[12.0, 24.0]] * RANKS
