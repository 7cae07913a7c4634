"""Vectors cut anywhere, saved by some ranks and loaded by others that cut them elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from parallel.sharding.fragment import Fragment
from tests.distributed.pool import on_ranks

VECTOR = torch.arange(11, dtype=torch.float64)


def cut(values: torch.Tensor, borders: list[int]) -> Fragment:
    start, end = borders[dist.get_rank() :][:2]
    return Fragment(values[start:end], start, values.shape)


def save(directory: str, borders: list[int]) -> None:
    values = VECTOR.clone()
    stager = DefaultStager(StagingOptions(False, False, False, False))
    staged = stager.stage({"v": cut(values, borders)})
    values.zero_()  # the copy is its own
    dcp.save(staged, checkpoint_id=directory)


def load(directory: str, borders: list[int]) -> torch.Tensor:
    values = torch.full_like(VECTOR, -1.0)
    dcp.load({"v": cut(values, borders)}, checkpoint_id=directory)
    return values


@pytest.mark.parametrize("borders", [[0, 4, 4, 11], [0, 0, 9, 11]])
def test_a_vector_is_cut_anew(tmp_path, borders):
    on_ranks(3, save, str(tmp_path), borders, init=True)
    first, second = on_ranks(2, load, str(tmp_path), [0, 7, 11], init=True)
    assert first.tolist() == [*range(7), -1, -1, -1, -1]
    assert second.tolist() == [-1] * 7 + [7, 8, 9, 10]


def test_it_has_no_arithmetic():
    with pytest.raises(NotImplementedError, match="use its part"):
        Fragment(VECTOR[:3], 0, (11,)) + 1
    assert repr(Fragment(VECTOR[2:5], 2, (11,))) == "Fragment(2:5 of 11)"
