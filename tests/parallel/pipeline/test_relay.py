"""Batches sent through the stages of a pipeline outside of training."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.pipeline.relay import Relay
from tests.distributed.pool import on_ranks


def relayed(owners: list[int], sizes: list[int]) -> list[list[float] | None]:
    """Stage s multiplies by 10 and adds s, of one batch for each of `sizes`, all started one after the other."""
    group = dist.group.WORLD
    assert group is not None
    relay, rank = Relay(owners, group), dist.get_rank()

    def stage(number: int, x: Tensor | None, size: int) -> Tensor:
        if x is None:
            return torch.arange(float(size)).repeat(2, 1).t()  # not contiguous
        assert x.shape == (size, 2)
        return (x.t() * 10 + number).t()

    found: list[list[float] | None] = []
    for size in sizes:
        mine = {
            number: lambda x, number=number, size=size: stage(number, x, size)
            for number, owner in enumerate(owners)
            if owner == rank
        }
        y = relay.forward(mine, (size, 2), torch.float32, torch.device("cpu"))
        found.append(None if y is None else y[:, 0].tolist())
    dist.barrier()  # what was sent last is only waited for by the next call
    return found


@pytest.mark.parametrize("owners", [[0, 1], [0, 1, 2], [0, 1, 0, 1], [0, 1, 1, 0], [0, 1, 2, 2, 1, 0]], ids=str)
def test_the_last_stage_has_the_result_whatever_the_sizes_of_batches(owners):
    sizes = [3, 1, 4]  # a smaller one after a larger one
    by_rank = on_ranks(max(owners) + 1, relayed, owners, sizes, init=True)
    added = sum(number * 10 ** (len(owners) - 1 - number) for number in range(len(owners)))
    expected = [[n * 10.0 ** (len(owners) - 1) + added for n in range(size)] for size in sizes]
    for rank, found in enumerate(by_rank):
        assert found == (expected if rank == owners[-1] else [None] * len(sizes))
