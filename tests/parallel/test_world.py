"""Values that the processes of a run exchange, in one process and on two gloo ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parallel import world as module
from parallel.world import World, WorldError, start_world
from tests.distributed.pool import on_ranks


def test_one_process_gets_plain_answers():
    world = World()
    tensor = torch.ones(2)
    assert world.gather("a") == ["a"]
    assert world.broadcast("a") == "a"
    assert world.sum_counts(a=3, b=4) == {"a": 3, "b": 4}
    assert world.gather_count(3) == [3]
    assert world.sum_tensor(tensor) is tensor
    world.agree("config", "x")
    world.close()


def test_a_missing_device_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WorldError) as refused:
        start_world("cuda")
    assert (refused.value.where, refused.value.value) == ("train.device", "cuda")
    assert "cpu" in refused.value.allowed


def test_more_ranks_than_devices_are_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(WorldError) as refused:
        start_world("auto")
    assert (refused.value.where, refused.value.value) == ("LOCAL_RANK", 2)
    assert "--nproc-per-node 2" in refused.value.allowed


def test_an_incomplete_environment_is_reported(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(WorldError) as refused:
        start_world("cpu")
    assert (refused.value.where, refused.value.value) == ("WORLD_SIZE", 2)
    assert "MASTER_ADDR" in refused.value.allowed
    assert "torchrun" in refused.value.allowed


def exchange() -> dict[str, object]:
    world = start_world("cpu", 30)
    genuine, module.BUCKET_BYTES = module.BUCKET_BYTES, 100  # several buckets, one tensor larger than a bucket
    try:
        model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(world.rank + 1.0)
        world.broadcast_module(model)
        for i, p in enumerate(model.parameters()):
            if world.rank == 0 or i != 1:  # one gradient is missing on one rank
                p.grad = torch.full_like(p, 10.0**world.rank * (i + 1))
        world.sum_gradients(model.parameters())
        try:
            world.agree("configuration", f"hash-{world.rank}")
            disagreement = None
        except WorldError as error:
            disagreement = (str(error), error.where, error.value, error.allowed)
        world.agree("seed", "same")
        return {
            "gather": world.gather(world.rank),
            "broadcast": world.broadcast(f"from {world.rank}"),
            "counts": world.sum_counts(ranks=world.rank, fives=5),
            "counts by rank": world.gather_count(world.rank + 7),
            "weights": {p.unique().item() for p in model.parameters()},
            "gradients": [p.grad.unique().tolist() for p in model.parameters()],
            "disagreement": disagreement,
        }
    finally:
        module.BUCKET_BYTES = genuine
        world.close()


def timeouts() -> tuple[float, float]:
    world = start_world("cpu", 30)
    group = torch.distributed.new_group(backend="gloo")  # as a mesh makes it
    world.extend_timeouts()
    found = [g._get_backend(torch.device("cpu")).options._timeout.total_seconds() for g in (group, world.background)]
    world.close()
    return tuple(found)


def test_every_group_waits_longer_than_the_watch():
    assert on_ranks(2, timeouts) == [(300.0, 300.0)] * 2


def test_two_ranks():
    first, second = on_ranks(2, exchange)
    assert first == second
    assert first["gather"] == [0, 1]
    assert first["broadcast"] == "from 0"
    assert first["counts"] == {"ranks": 1, "fives": 10}
    assert first["counts by rank"] == [7, 8]
    assert first["weights"] == {1.0}
    assert first["gradients"] == [[11.0], [2.0], [33.0], [44.0]]
    text, where, value, allowed = first["disagreement"]
    assert "rank 1 of 2" in text
    assert "rank 1: hash-1" in text
    assert (where, value, allowed) == ("configuration", {1: "hash-1"}, ("hash-0",))
