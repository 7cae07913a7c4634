"""Plans of who puts which matrix together: each once, evenly by cost, among the ranks that hold some of it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from parallel.sharding.owners import Bucket, Stack, plan
from parallel.simulate import fake_world

RANKS = 8


def cost(rows: int, columns: int) -> float:
    return min(rows, columns) ** 2 * max(rows, columns)


def meta(local: tuple[int, ...], whole: tuple[int, ...], mesh, *placements) -> DTensor:
    strides = torch.empty(whole, device="meta").stride()
    part = torch.empty(local, device="meta")
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(whole), stride=strides)


def planned(rank: int, elements: int = 1 << 20) -> tuple[list[Bucket], list[Stack]]:
    """The plan of `rank` in two copies of four ranks: dense matrices over the four, experts on two pairs of them."""
    with fake_world(RANKS, rank):
        mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("copy", "cut", "expert"))
        flat = init_device_mesh("cpu", (2, 4), mesh_dim_names=("copy", "shard"))
        of_four = rank % 4
        experts = meta((6, 2, 8, 20), (12, 2, 16, 20), mesh, Replicate(), Shard(2), Shard(0))
        tall = meta((max(0, min(3, 10 - 3 * of_four)), 12), (10, 12), flat, Replicate(), Shard(0))
        short = meta((int(of_four < 3), 9), (3, 9), flat, Replicate(), Shard(0))
        stacks = [Stack(tall, slice(0, 7)), Stack(tall, slice(7, 10)), Stack(short, slice(0, 3))]
        stacks.append(Stack(experts, slice(0, 16)))
        buckets = plan(stacks, cost, dist.group.WORLD, elements=elements, elements_alone=1)
        return buckets, stacks


@pytest.mark.parametrize("elements", [1 << 20, 1000], ids=["one bucket", "several buckets"])
def test_each_matrix_has_one_owner_and_work_is_even(elements):
    load, owned = Counter[int](), Counter[tuple[int, int]]()
    numbers = set()
    for rank in range(RANKS):
        buckets, stacks = planned(rank, elements)
        numbers.add(len(buckets))
        for job in (job for bucket in buckets for job in bucket.jobs):
            for run in job.runs:
                if run.owner == rank:
                    load[rank] += (run.index.stop - run.index.start) * cost(*stacks[job.stack].matrix)
                    owned.update((job.stack, index) for index in range(run.index.start, run.index.stop))
                    assert rank in {holder for holder, _ in run.sources}
                    assert {holder for holder, _ in run.sources} <= {holder for holder, _ in run.targets}
    assert len(numbers) == 1  # alike on all ranks
    assert (numbers == {1}) == (elements > 1000)
    assert owned == Counter({(0, 0): 1, (1, 0): 1, (2, 0): 1} | {(3, index): 1 for index in range(24)})
    assert max(load.values()) - min(load.values()) <= cost(16, 20)


def test_what_one_rank_holds_is_not_sent_and_is_cut_into_pieces():
    with fake_world(RANKS, 3):
        mesh = init_device_mesh("cpu", (RANKS,))
        experts = meta((5, 4, 6), (40, 4, 6), mesh, Shard(0))
        buckets = plan([Stack(experts, slice(0, 4))], cost, dist.group.WORLD, elements=1, elements_alone=48)
    assert [bucket.group for bucket in buckets] == [None] * 3
    indices = [bucket.jobs[0].part.index for bucket in buckets]
    assert [(index.start, index.stop) for index in indices] == [(15, 17), (17, 19), (19, 20)]


def test_a_weight_on_other_ranks_than_the_groups_is_refused():
    with fake_world(RANKS, 0):
        mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("copy", "shard"))
        weight = meta((1, 6), (4, 6), mesh["shard"], Shard(0))
        with pytest.raises(ValueError, match="group"):
            plan([Stack(weight, slice(0, 4))], cost, dist.group.WORLD, elements=1, elements_alone=1)
