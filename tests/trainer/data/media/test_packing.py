"""Best-fit packing against an implementation that places one sample at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.data.attention_cost import attention_costs, imbalance
from trainer.data.errors import DataError
from trainer.data.media.packing import DROPPED, Plan, plan_packs


def one_at_a_time(lengths: list[int], capacity: int) -> list[int]:
    """Tokens in each pack, sorted: the textbook's best fit decreasing, in which packs with equal room are equal."""
    packs: list[list[int]] = []
    for length in sorted((n for n in lengths if n <= capacity), reverse=True):
        fitting = [pack for pack in packs if sum(pack) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            packs.append([length])
    return sorted(map(sum, packs))


@pytest.mark.parametrize("seed", range(8))
def test_the_packs_are_those_of_best_fit_decreasing(seed: int) -> None:
    random = np.random.default_rng(seed)
    capacity = int(random.integers(5, 200))
    lengths = random.integers(1, capacity * 5 // 4 + 2, size=int(random.integers(1, 300)))
    plan = plan_packs(lengths, capacity)
    packs = [plan.pack(number)[0] for number in range(plan.num_packs)]
    assert sorted(int(lengths[pack].sum()) for pack in packs) == one_at_a_time(lengths.tolist(), capacity)


def test_every_token_is_packed_padded_or_dropped_and_no_two_overlap() -> None:
    lengths = np.random.default_rng(3).integers(1, 600, size=3000)
    plan = plan_packs(lengths, 512)
    used = np.zeros(plan.num_packs * 512, np.int64)
    for number in range(plan.num_packs):
        for sample, start in zip(*plan.pack(number), strict=True):
            assert plan.pack_of[sample] == number
            assert start + lengths[sample] <= 512
            used[number * 512 + start : number * 512 + start + lengths[sample]] += 1
    assert used.max() == 1
    assert used.sum() == plan.packed_tokens == lengths[lengths <= 512].sum()
    assert plan.padded_tokens == (used == 0).sum()
    assert plan.dropped_tokens == lengths[lengths > 512].sum() > 0
    assert plan.dropped_samples == (lengths > 512).sum()
    assert (plan.pack_of[lengths > 512] == DROPPED).all()
    assert {array.dtype for array in (plan.offsets, plan.members, plan.starts, plan.pack_of)} == {np.dtype(np.int64)}


def test_many_samples_are_planned_fast_and_lengths_of_no_tokens_refused() -> None:
    lengths = np.random.default_rng(0).integers(1, 4096, size=300_000)
    plan = plan_packs(lengths, 4096)
    assert plan.padded_tokens < 0.01 * plan.packed_tokens
    assert plan_packs([], 8).num_packs == 0
    with pytest.raises(DataError) as error:
        plan_packs([3, 0], 8)
    assert (error.value.where, error.value.value, error.value.allowed) == ("lengths", 0, "1 or more")


def test_a_plan_is_written_mapped_and_refused_where_it_is_corrupt_or_of_other_samples(tmp_path: Path) -> None:
    lengths, path = np.array([5, 9, 3, 3, 7, 12]), tmp_path / "images.plan"
    plan = plan_packs(lengths, 10)
    plan.save(path)
    again = Plan.open(path, lengths)
    for number in range(plan.num_packs):
        np.testing.assert_array_equal(np.stack(again.pack(number)), np.stack(plan.pack(number)))
    assert (again.padded_tokens, again.dropped_tokens) == (plan.padded_tokens, 12)
    with pytest.raises(IndexError):
        again.pack(plan.num_packs)
    with pytest.raises(DataError) as error:
        Plan.open(path, lengths + 1)
    assert (error.value.where, error.value.allowed) == (str(path), "plan the packs again")
    whole = path.read_bytes()
    for content, value in (
        (whole[:-1], len(whole) - 1),
        (whole[:-1] + bytes([whole[-1] ^ 1]), None),
        (b"something else entirely", None),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            Plan.open(path, lengths)
        found = error.value
        assert (found.where, found.value, found.allowed) == (str(path), value, "plan the packs again")


def test_the_cost_of_attention_and_its_balance_over_ranks() -> None:
    starts = np.zeros((4, 9), bool)
    starts[1, 4] = True  # two documents of 4 tokens
    starts[2, [0, 2, 6]] = True
    starts[3, 8] = True  # starts with the label
    costs = attention_costs(starts)
    assert costs.tolist() == [64, 32, 4 + 16 + 4, 64]
    assert imbalance(costs, 1, 4) == pytest.approx(64 / 46)
    assert imbalance(costs, 2, 2) == pytest.approx(96 / 92)
    assert imbalance(costs, 1, 2) == pytest.approx((64 / 48 + 64 / 44) / 2)
    assert imbalance(costs, 4, 1) == 1.0
    assert imbalance(costs, 1, 3) == pytest.approx(64 / 40)  # what makes no whole micro-batch does not count
