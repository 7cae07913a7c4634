"""The pool itself: what a call finds, what it leaves, and what is said when a rank fails, dies or hangs."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.distributed.pool import on_ranks


def who() -> tuple[int, str, str]:
    return os.getpid(), os.environ["RANK"], os.environ["WORLD_SIZE"]


def total() -> tuple[int, float]:
    value = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(value)
    return dist.get_world_size(), value.item()


def test_groups_of_any_size_by_the_same_workers():
    three = on_ranks(3, who)
    assert [where[1:] for where in three] == [("0", "3"), ("1", "3"), ("2", "3")]
    for size in (1, 2, 4, 3):
        assert on_ranks(size, total, init=True) == [(size, size * (size + 1) / 2)] * size
    assert [pid for pid, *_ in on_ranks(3, who)] == [pid for pid, *_ in three]


def leave_things_behind() -> None:
    dist.init_process_group("gloo")
    dist.new_group([0])
    os.environ["LEFT_BEHIND"] = "1"
    os.environ.pop("PATH")


def look_around() -> tuple[bool, bool, bool, int, str]:
    return (
        dist.is_initialized(),
        "LEFT_BEHIND" in os.environ,
        "PATH" in os.environ,
        torch.get_num_threads(),
        os.environ["OMP_NUM_THREADS"],
    )


def test_nothing_is_left_for_the_next_call():
    on_ranks(2, leave_things_behind)
    assert on_ranks(2, look_around) == [(False, False, True, 1, "1")] * 2


def hold_a_group_in_a_circle() -> int:
    threads = len(os.listdir("/proc/self/task"))
    circle: dict[str, object] = {"group": dist.new_group()}
    circle["itself"] = circle
    return threads


def train_a_shard() -> int:
    threads = len(os.listdir("/proc/self/task"))
    layer = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (2,)))
    layer(torch.ones(1, 4)).sum().backward()
    layer.weight.full_tensor()
    return threads


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("function", [hold_a_group_in_a_circle, train_a_shard])
def test_groups_of_earlier_calls_have_no_threads_left(function):
    before = on_ranks(2, function, init=True)
    assert on_ranks(2, function, init=True) == before
    assert on_ranks(2, function, init=True) == before


def groups_one_after_another(times: int) -> list[float]:
    sums = []
    for i in range(times):
        if i % 2 == int(os.environ["RANK"]):  # the other rank must wait, not read what the group before has left
            time.sleep(0.3)
        dist.init_process_group("gloo")
        sums.append(total()[1])
        dist.destroy_process_group()
    return sums


def test_a_second_group_does_not_meet_on_the_addresses_of_the_first():
    assert on_ranks(2, groups_one_after_another, 3) == [[3.0] * 3] * 2


def one_fails(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ZeroDivisionError("the cause")
    dist.barrier()


def test_the_cause_comes_first_and_the_next_call_works():
    before = on_ranks(3, who)
    with pytest.raises(AssertionError) as caught:
        on_ranks(3, one_fails, 2, init=True)
    first, *others = str(caught.value).split("\nrank ")
    assert first.startswith("rank 2: Traceback")
    assert "ZeroDivisionError: the cause" in first
    assert sorted(other[0] for other in others) == ["0", "1"]
    assert not {pid for pid, *_ in on_ranks(3, who)} & {pid for pid, *_ in before}


def one_hangs() -> None:
    if os.environ["RANK"] == "1":
        threading.Event().wait()


def test_a_rank_that_hangs_is_named_with_its_stack():
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"^rank 1: no answer in 0\.5 s\n(.*\n)*.*in one_hangs") as caught:
        on_ranks(2, one_hangs, timeout_s=0.5)
    assert "rank 0" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert on_ranks(2, total, init=True) == [(2, 3.0)] * 2


def one_dies() -> None:
    if os.environ["RANK"] == "1":
        os._exit(7)


def test_a_rank_that_dies_is_named():
    with pytest.raises(AssertionError, match="rank 1: the worker died, exit code 7"):
        on_ranks(2, one_dies)


def test_a_worker_that_died_between_calls_is_replaced():
    pids = [pid for pid, *_ in on_ranks(2, who)]
    os.kill(pids[1], 9)
    time.sleep(0.2)
    assert on_ranks(2, total, init=True) == [(2, 3.0)] * 2


def returns_what_cannot_travel() -> object:
    return threading.Lock()


def test_an_answer_that_cannot_be_pickled_is_a_failure_and_no_hang():
    with pytest.raises(AssertionError, match="cannot pickle"):
        on_ranks(1, returns_what_cannot_travel)
